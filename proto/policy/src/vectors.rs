//! The golden vectors: topologies, and what the policy must say of them. Every crate that decides by
//! this one replays them through its own path.

use std::sync::Arc;

use isthmus_model::topology::{self, SourceFile, Topology};
use isthmus_model::{Identity, Layer4, Name};
use serde::Deserialize;

use crate::policy::Policy;
use crate::verdict::{Outcome, Query, Request, Token, Verdict};

const FILES: &[(&str, &str)] = &[
    ("layer4.toml", include_str!("../vectors/layer4.toml")),
    ("requests.toml", include_str!("../vectors/requests.toml")),
    ("paths.toml", include_str!("../vectors/paths.toml")),
    ("audit.toml", include_str!("../vectors/audit.toml")),
    ("audit-scope.toml", include_str!("../vectors/audit-scope.toml")),
    ("audit-rule.toml", include_str!("../vectors/audit-rule.toml")),
    ("authorisation.toml", include_str!("../vectors/authorisation.toml")),
    ("readings.toml", include_str!("../vectors/readings.toml")),
    ("default-allow.toml", include_str!("../vectors/default-allow.toml")),
];

/// A topology with questions about it.
#[derive(Clone, Debug)]
pub struct Vector {
    /// The file that it comes from.
    pub file: &'static str,
    /// What the questions are about.
    pub topology: Topology,
    /// The questions.
    pub cases: Vec<Case>,
}

/// A question, and the right answer.
#[derive(Clone, Debug)]
pub struct Case {
    /// Subject.
    pub name: String,
    /// Caller.
    pub from: Identity,
    /// For whom.
    pub to: Identity,
    /// Transport of the first packet.
    pub layer4: Layer4,
    /// Method and path.
    pub request: Option<(String, String)>,
    /// The host that the request is for, as on the wire.
    pub host: String,
    /// The request's query.
    pub query: String,
    /// The request's header fields, as on the wire.
    pub headers: Vec<(String, String)>,
    /// The request's tokens.
    pub tokens: Vec<Token>,
    /// The header fields as the engine takes them: by names in lower case.
    asked: Vec<(String, String)>,
    /// Expected outcome.
    pub outcome: Outcome,
    /// Expected decider: a rule's name, `default`, `built-in: …`.
    pub by: String,
    /// Expected decider that would have denied without audit.
    pub would_deny: Option<String>,
}

impl Case {
    /// The question, as the engine takes it.
    #[must_use]
    pub fn query(&self) -> Query<'_> {
        let request = self.request.as_ref().map(|(method, path)| Request {
            host: &self.host,
            query: &self.query,
            headers: &self.asked,
            tokens: &self.tokens,
            ..Request::new(method, path)
        });
        Query { from: &self.from, to: &self.to, layer4: self.layer4, request }
    }

    /// Difference of a policy's verdict from the expected one, if any.
    #[must_use]
    pub fn complaint(&self, policy: &Policy, verdict: &Verdict) -> Option<String> {
        let by = policy.describe(verdict).name;
        let would_deny = verdict.would_deny.map(|by| policy.describe_decider(by).name);
        let right = (self.outcome, self.by.as_str(), self.would_deny.as_deref());
        let got = (verdict.outcome, by, would_deny);
        (got != right).then(|| format!("{}: got {got:?}, want {right:?}", self.name))
    }
}

/// All vectors.
///
/// # Panics
///
/// If a file isn't what this module expects: they are part of this crate.
#[must_use]
pub fn all() -> Vec<Vector> {
    FILES.iter().map(|(file, text)| read(file, text)).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    topology: String,
    case: Vec<Row>,
}

/// `ask` is `FROM -> TO`, then the port unless it is the service's own, then method and path.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    ask: String,
    outcome: Answer,
    by: String,
    would_deny: Option<String>,
    #[serde(default)]
    host: String,
    #[serde(default)]
    query: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    /// Of a token by the provider `login`.
    claims: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Deny,
    Allow,
    Inspect,
}

fn read(file: &'static str, text: &str) -> Vector {
    let parsed: File = toml::from_str(text).unwrap_or_else(|error| panic!("{file}: {error}"));
    let source = SourceFile { name: "mesh.toml".into(), text: parsed.topology };
    let topology = topology::parse(&[source]).unwrap_or_else(|wrong| panic!("{file}: {wrong:?}"));
    let case = |row: Row| {
        let name = row.name.clone();
        case(&topology, row).unwrap_or_else(|| panic!("{file}: can't read `ask` of {name:?}"))
    };
    let cases = parsed.case.into_iter().map(case).collect();
    Vector { file, topology, cases }
}

fn case(topology: &Topology, row: Row) -> Option<Case> {
    let (from, rest) = row.ask.split_once(" -> ")?;
    let mut words = rest.split(' ').peekable();
    let (from, to) = (identity(topology, from)?, identity(topology, words.next()?)?);
    let port = words.next_if(|word| word.contains('/') || *word == "icmp");
    let layer4 = match (port, &to) {
        (Some(port), _) => port.parse().ok()?,
        (None, Identity::Service { name, .. }) => own_port(topology, name)?,
        (None, Identity::Host(_) | Identity::Device(_)) => return None,
    };
    let request = match (words.next(), words.next()) {
        (Some(method), Some(path)) => Some((method.to_owned(), path.to_owned())),
        (None, _) => None,
        (Some(_), None) => return None,
    };
    let outcome = match row.outcome {
        Answer::Deny => Outcome::Deny,
        Answer::Allow => Outcome::Allow,
        Answer::Inspect => Outcome::Inspect,
    };
    let Row { name, by, would_deny, host, query, headers, claims, .. } = row;
    let provider: Name = "login".parse().ok()?;
    let token = |claims| Token { provider: provider.clone(), claims: Arc::new(claims) };
    let tokens = claims.map(token).into_iter().collect();
    let asked = headers.iter().map(|(n, v)| (n.to_ascii_lowercase(), v.clone())).collect();
    Some(Case {
        name,
        from,
        to,
        layer4,
        request,
        host,
        query,
        headers,
        tokens,
        asked,
        outcome,
        by,
        would_deny,
    })
}

fn own_port(topology: &Topology, service: &Name) -> Option<Layer4> {
    Policy::for_topology(topology).served(service).first().map(|served| served.layer4)
}

fn identity(topology: &Topology, text: &str) -> Option<Identity> {
    crate::check::identity(topology, &text.parse().ok()?).ok()
}
