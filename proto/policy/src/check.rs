//! The tests that a topology brings along.

use std::sync::Arc;

use isthmus_model::topology::{TestDecl, TestRequest, TestToken, Topology};
use isthmus_model::{Action, Identity, Layer4, Origin, Subject};
use serde_json::Value;

use crate::policy::Policy;
use crate::verdict::{Outcome, Query, Request, Token};

/// What became of one `[[test]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestResult {
    /// The test's name.
    pub name: Arc<str>,
    /// Whether the policy does what the test expects.
    pub passed: bool,
    /// What the policy does, and why.
    pub detail: String,
    /// Where the test stands.
    pub origin: Origin,
}

/// Runs the tests of a topology against its policy. They tell what the rules mean, so they are
/// judged as if the policy enforced, even where it only audits.
#[must_use]
pub fn run_tests(topology: &Topology) -> Vec<TestResult> {
    let mut policy = Policy::for_topology(topology);
    policy.enforce();
    topology.tests.iter().map(|test| run(&policy, topology, test)).collect()
}

fn run(policy: &Policy, topology: &Topology, test: &TestDecl) -> TestResult {
    let (passed, detail) = match judge(policy, topology, test) {
        Ok(judged) => judged,
        Err(problem) => (false, problem),
    };
    TestResult { name: test.name.clone(), passed, detail, origin: test.origin.clone() }
}

fn judge(policy: &Policy, topology: &Topology, test: &TestDecl) -> Result<(bool, String), String> {
    let from = identity(topology, &test.from)?;
    let to = identity(topology, &test.to)?;
    let layer4 = test.layer4.map_or_else(|| own_port(policy, &to), Ok)?;
    let asked = test.request.as_ref();
    let tokens: Vec<Token> = asked.and_then(token).into_iter().collect();
    let query = asked.map(query_of).unwrap_or_default();
    let request = asked.map(|asked| Request {
        host: &asked.host,
        query: &query,
        headers: &asked.headers,
        tokens: &tokens,
        ..Request::new(&asked.method, &asked.path)
    });
    let query = Query { from: &from, to: &to, layer4, request };
    let explanation = policy.explain(&query);
    let decision = policy.describe(&explanation.verdict);
    let at = decision.origin.map(|origin| format!(" ({origin})")).unwrap_or_default();
    let (action, what) = match explanation.verdict.outcome {
        Outcome::Deny => (Action::Deny, "denied"),
        Outcome::Allow => (Action::Allow, "allowed"),
        Outcome::Inspect => (Action::Allow, "allowed for some requests"),
    };
    let hint = explanation.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
    let detail = format!("{from} to {to}, {layer4}: {what} by {:?}{at}{hint}", decision.name);
    Ok((action == test.expect, detail))
}

fn token(asked: &TestRequest) -> Option<Token> {
    let TestToken { provider, claims } = asked.jwt.as_ref()?;
    let claim = |(name, value): &(Arc<str>, Arc<str>)| (name.to_string(), Value::from(&**value));
    let claims = Arc::new(claims.iter().map(claim).collect());
    Some(Token { provider: provider.clone(), claims })
}

fn query_of(asked: &TestRequest) -> String {
    let pair =
        |(name, value): &(Arc<str>, Arc<str>)| format!("{}={}", encoded(name), encoded(value));
    asked.query.iter().map(pair).collect::<Vec<_>>().join("&")
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let one = |byte: u8| {
        if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(one).collect()
}

fn own_port(policy: &Policy, to: &Identity) -> Result<Layer4, String> {
    match to {
        Identity::Service { name, .. } => policy
            .served(name)
            .first()
            .map(|served| served.layer4)
            .ok_or_else(|| format!("no {to}")),
        Identity::Host(_) | Identity::Device(_) => {
            Err(format!("{to} has no port of its own: give the test a `port`, such as \"tcp/22\""))
        }
    }
}

pub(crate) fn identity(topology: &Topology, subject: &Subject) -> Result<Identity, String> {
    let found = match subject {
        Subject::Service(name) => topology
            .services
            .get(name)
            .map(|s| Identity::Service { namespace: s.namespace.clone(), name: name.clone() }),
        Subject::Host(name) => topology.hosts.get(name).map(|_| Identity::Host(name.clone())),
        Subject::Device(name) => topology.devices.get(name).map(|_| Identity::Device(name.clone())),
        Subject::Any
        | Subject::AnyService
        | Subject::Namespace(_)
        | Subject::AnyHost
        | Subject::AnyDevice => {
            return Err(format!("{subject} is many: a test names one service, host or device"));
        }
    };
    found.ok_or_else(|| format!("{subject} isn't declared"))
}
