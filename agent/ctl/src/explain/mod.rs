//! `agentctl explain`: may FROM reach TO, which rule says so, and why the others don't.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use isthmus_model::host::canonical_authority;
use isthmus_model::{Action, Identity, Layer4, RequestMatch, Rule, Subject, convert, snapshot};
use isthmus_policy::{Decision, Explanation, Outcome, Query, Request, Step, Token};
use isthmus_proto::v1;
use serde_json::{Value, json};

use crate::cli::{Explain, Format};
use crate::diagnostics;
use crate::errors::{Exit, Failure};
use crate::output::{self, Tone, clean, paint};
use crate::sources;
use crate::status::read_mesh;
use crate::transport::{Session, Whom, ask_agent, ask_controller};
use crate::world::World;

pub(crate) async fn explain(session: &Session, arguments: &Explain) -> Result<Exit> {
    let world = if !arguments.file.is_empty() {
        match offline(arguments)? {
            Ok(world) => world,
            Err(findings) => {
                output::complain(&findings);
                return Ok(Exit::Usage);
            }
        }
    } else {
        match session.policy_from() {
            Whom::Mesh => from_controller(session).await?,
            Whom::Agent => from_agent(session).await?,
        }
    };
    let answer = Answer::new(&world, arguments).map_err(Failure::Usage)?;
    match session.output {
        Format::Text => output::say(&answer.text())?,
        Format::Json => output::json(&answer.json())?,
    }
    Ok(answer.exit())
}

fn offline(arguments: &Explain) -> Result<Result<World, String>> {
    let files = sources::read(&arguments.file)?;
    let names: Vec<&str> = files.iter().map(|file| &*file.name).collect();
    Ok(match sources::topology(&files) {
        Ok(topology) => Ok(World::of_topology(&topology, names.join(", "))),
        Err(findings) => Err(diagnostics::render(&findings, &files)),
    })
}

async fn from_controller(session: &Session) -> Result<World> {
    let mut admin = session.controller().await?;
    let running = ask_controller(admin.read_topology(v1::ReadTopologyRequest::default())).await?;
    let files = sources::from_messages(running.files);
    let topology = sources::topology(&files).map_err(|findings| {
        let first = findings.first().map(|found| found.message.clone()).unwrap_or_default();
        Failure::Refused(format!(
            "This agentctl doesn't understand the running topology ({first}); is it older than \
             the controller?"
        ))
    })?;
    let source = format!("revision {} of the mesh", running.revision);
    let mut world = World::of_topology(&topology, source);
    world.add_status(&read_mesh(session).await?);
    Ok(world)
}

async fn from_agent(session: &Session) -> Result<World> {
    let mut agent = session.agent().await?;
    let read = ask_agent(agent.read_snapshot(v1::ReadSnapshotRequest {})).await?;
    let revision = snapshot::Revision(read.revision);
    let snapshot = convert::snapshot(revision, &read.resources).map_err(|error| {
        Failure::Refused(format!(
            "This agentctl doesn't understand the agent's snapshot ({error}); are they of the same \
             version?"
        ))
    })?;
    Ok(World::of_snapshot(&snapshot))
}

/// A question with its answer.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    world: &'a World,
    from: Identity,
    to: Identity,
    layer4: Layer4,
    request: Option<(&'a str, &'a str)>,
    has_token: bool,
    explanation: Explanation,
}

impl<'a> Answer<'a> {
    /// Asks.
    ///
    /// # Errors
    ///
    /// Says what the question should have been.
    pub(crate) fn new(world: &'a World, arguments: &'a Explain) -> Result<Self, String> {
        let (from, _) = world.resolve(&arguments.from)?;
        let (to, port) = world.resolve(&arguments.to)?;
        world.can_judge(&from, &to)?;
        let ports = world.ports(&to);
        let own = ports.first().map(|it| it.layer4);
        let named = port.map(|port| {
            let is_udp = ports.iter().any(|it| it.layer4 == Layer4::Udp(port));
            let is_tcp = ports.iter().any(|it| it.layer4 == Layer4::Tcp(port));
            if is_udp && !is_tcp { Layer4::Udp(port) } else { Layer4::Tcp(port) }
        });
        let layer4 = arguments.port.or(named).or(own).ok_or_else(|| {
            format!(
                "{to} has no port of its own; say which, such as `--port tcp/22` or `--port icmp`"
            )
        })?;
        let path = arguments.path.as_deref().map(|it| it.split_once('?').unwrap_or((it, "")));
        let request = arguments.method.as_deref().zip(path);
        let host = arguments.host.as_deref().unwrap_or_default();
        if !host.is_empty() {
            canonical_authority(host).map_err(|why| {
                format!(
                    "the proxy refuses {host:?} as a host: {why}; write one such as api.example.com"
                )
            })?;
        }
        let headers: Vec<(String, &str)> = arguments
            .header
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
            .collect();
        let tokens = tokens(world, arguments, &to)?;
        let query = Query {
            from: &from,
            to: &to,
            layer4,
            request: request.map(|(method, (path, query))| Request {
                host,
                query,
                headers: &headers,
                tokens: &tokens,
                ..Request::new(method, path)
            }),
        };
        let request = request.map(|(method, (path, _))| (method, path));
        let explanation = world.policy.explain(&query);
        let has_token = !tokens.is_empty();
        let answer = Self { world, from, to, layer4, request, has_token, explanation };
        match answer.no_such_port() {
            // No rule is about it, so whatever came out would say more than there is.
            Some(why) if answer.decision().name == "default" => {
                Err(format!("{why}; ask about one of these with --port"))
            }
            Some(_) | None => Ok(answer),
        }
    }

    /// That the service is reached by other ports than the one that is asked about.
    fn no_such_port(&self) -> Option<String> {
        let ports = self.world.ports(&self.to);
        let is_port = matches!(self.layer4, Layer4::Tcp(_) | Layer4::Udp(_));
        let is_there = ports.is_empty() || ports.iter().any(|it| it.layer4 == self.layer4);
        (is_port && !is_there).then(|| {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            format!("{} has no port {}: it has {}", self.to, self.layer4, ports.join(", "))
        })
    }

    fn outcome(&self) -> Outcome {
        self.explanation.verdict.outcome
    }

    fn decision(&self) -> Decision<'_> {
        self.world.policy.describe(&self.explanation.verdict)
    }

    pub(crate) fn exit(&self) -> Exit {
        match self.outcome() {
            Outcome::Allow | Outcome::Inspect => Exit::Success,
            Outcome::Deny => Exit::Negative,
        }
    }

    pub(crate) fn text(&self) -> String {
        let (word, tone) = match self.outcome() {
            Outcome::Allow => ("ALLOW", Tone::Good),
            Outcome::Deny => ("DENY", Tone::Bad),
            Outcome::Inspect => ("DEPENDS", Tone::Warn),
        };
        let request = match self.request {
            Some((method, path)) => format!(" {method} {path}"),
            None => String::new(),
        };
        let question = clean(&format!("{} -> {} {}{request}", self.from, self.to, self.layer4));
        let mut text = format!("{} {question}\n", paint(word, tone));
        text.push_str(&self.decider());
        if let Some(why) = self.no_such_port() {
            text.push_str(&paint(&format!("  {}\n", clean(&why)), Tone::Warn));
        }
        if let Some(denier) = self.explanation.verdict.would_deny {
            let denier = self.world.policy.describe_decider(denier);
            let note =
                format!("  passes only because of audit mode: {} would deny it\n", named(&denier));
            text.push_str(&paint(&note, Tone::Warn));
        }
        if self.outcome() == Outcome::Inspect {
            text.push_str(&self.requests_text());
        }
        text.push_str(&self.steps_text());
        if let Some(hint) = &self.explanation.hint {
            text.push_str(&format!("{} {}\n", paint("hint:", Tone::Strong), clean(hint)));
        }
        if let Some(unsaid) = self.unsaid_token() {
            text.push_str(&format!("{} {unsaid}\n", paint("hint:", Tone::Strong)));
        }
        if let Some(toml) = self.suggestion() {
            let add = "to allow it, add this to the topology and apply it:";
            text.push_str(&format!("{add}\n\n{}\n", clean(&toml)));
        }
        text.push_str(&paint(&format!("(by {})\n", clean(&self.world.source)), Tone::Quiet));
        text
    }

    /// What to add to the topology.
    fn suggestion(&self) -> Option<String> {
        let suggestion = self.explanation.suggestion.as_ref()?;
        let ends = [&self.from, &self.to].into_iter();
        let undeclared: BTreeSet<_> = ends.filter(|it| self.world.is_undeclared(it)).collect();
        let hosts = undeclared.iter().map(|host| format!("[host.{}]\n\n", host.name()));
        Some(hosts.collect::<String>() + &suggestion.to_string())
    }

    /// A denied request without a token may have been asked about by who forgot it.
    fn unsaid_token(&self) -> Option<String> {
        if self.outcome() != Outcome::Deny || self.request.is_none() || self.has_token {
            return None;
        }
        let providers = self.world.policy.providers(&self.to);
        let names: Vec<&str> = providers.iter().map(|provider| provider.name.as_str()).collect();
        (!names.is_empty()).then(|| {
            format!(
                "rules about {} ask for tokens of {}; say what the caller's claims with --claim NAME=VALUE",
                self.to,
                names.join(", ")
            )
        })
    }

    fn decider(&self) -> String {
        let decision = self.decision();
        match (self.outcome(), decision.name) {
            (Outcome::Inspect, _) => {
                "  each request is judged by itself, at the server\n".to_owned()
            }
            // The bare word is what flows, logs and metrics show.
            (Outcome::Allow | Outcome::Deny, "default") => {
                "  decided by default: no rule matches\n".to_owned()
            }
            (Outcome::Allow | Outcome::Deny, _) => format!("  decided by {}\n", named(&decision)),
        }
    }

    fn steps_text(&self) -> String {
        let steps = &self.explanation.steps;
        if steps.is_empty() {
            let none = format!("  no rule is about {} and {}\n", self.from, self.to);
            return clean(&none);
        }
        let mut text = "rules considered:\n".to_owned();
        if self.explanation.omitted > 0 {
            text.push_str(&format!("  ({} before these)\n", self.explanation.omitted));
        }
        for step in steps {
            text.push_str(&step_line(step));
        }
        text
    }

    fn requests_text(&self) -> String {
        let mut text = "allowed is:\n".to_owned();
        for allowed in self.requests(Action::Allow) {
            text.push_str(&format!("  {}\n", clean(&allowed.to_string())));
        }
        let mut denied = self.requests(Action::Deny).peekable();
        if denied.peek().is_some() {
            text.push_str("except:\n");
        }
        for denied in denied {
            text.push_str(&format!("  {}\n", clean(&denied.to_string())));
        }
        text.push_str("ask about one with --method GET --path /\n");
        text
    }

    /// The requests that rules between the two name.
    fn requests(&self, action: Action) -> impl Iterator<Item = Named<'_>> {
        let about = move |rule: &&Rule| {
            let about = |subjects: &[Subject], who| subjects.iter().any(|s| covers(s, who));
            rule.action == action
                && !rule.audit
                && about(&rule.from, &self.from)
                && about(&rule.to, &self.to)
                && (rule.ports.is_empty() || rule.ports.iter().any(|p| p.matches(self.layer4)))
        };
        self.world.policy.rules().iter().filter(about).flat_map(|rule| {
            let any = rule.http.is_empty().then_some(Named { rule, request: None });
            any.into_iter()
                .chain(rule.http.iter().map(|request| Named { rule, request: Some(request) }))
        })
    }

    pub(crate) fn json(&self) -> Value {
        let decision = self.decision();
        let step = |step: &Step| {
            json!({
                "rule": *step.rule,
                "action": action_word(step.action),
                "file": step.origin.as_ref().map(|origin| &*origin.file),
                "line": step.origin.as_ref().map(|origin| origin.line),
                "matched": step.matched,
                "reason": step.reason,
            })
        };
        let inspect = self.outcome() == Outcome::Inspect;
        let requests = |action| {
            inspect.then(|| self.requests(action).map(|one| one.json()).collect::<Value>())
        };
        json!({
            "verdict": self.outcome().to_string(),
            "from": self.from.to_string(),
            "to": self.to.to_string(),
            "layer4": self.layer4.to_string(),
            "method": self.request.map(|(method, _)| method),
            "path": self.request.map(|(_, path)| path),
            "rule": decision.name,
            "file": decision.origin.map(|origin| &*origin.file),
            "line": decision.origin.map(|origin| origin.line),
            "audited": self.explanation.verdict.audited(),
            "steps": self.explanation.steps.iter().map(step).collect::<Value>(),
            "allowed_requests": requests(Action::Allow),
            "denied_requests": requests(Action::Deny),
            "hint": self.explanation.hint,
            "no_such_port": self.no_such_port(),
            "suggestion": self.suggestion(),
            "source": self.world.source,
        })
    }
}

/// The token that the question gives to the request, as if it had been verified.
fn tokens(world: &World, arguments: &Explain, to: &Identity) -> Result<Vec<Token>, String> {
    if arguments.claim.is_empty() && arguments.provider.is_none() {
        return Ok(Vec::new());
    }
    let asked_for = world.policy.providers(to);
    let provider = match &arguments.provider {
        Some(name) => name.parse().map_err(|error| format!("provider {name:?}: {error}"))?,
        None => match asked_for.first() {
            Some(provider) => provider.name.clone(),
            None => return Err(format!("no rule about {to} asks for a token; name a --provider")),
        },
    };
    let value =
        |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let claims = arguments.claim.iter().map(|(name, text)| (name.clone(), value(text)));
    Ok(vec![Token { provider, claims: Arc::new(claims.collect()) }])
}

/// A request that a rule names; none: every request.
#[derive(Clone, Copy, Debug)]
struct Named<'a> {
    rule: &'a Rule,
    request: Option<&'a RequestMatch>,
}

impl Named<'_> {
    fn method(&self) -> Option<&str> {
        self.request?.method.as_deref()
    }

    fn path(&self) -> Option<&str> {
        self.request?.path.as_deref()
    }

    fn json(&self) -> Value {
        json!({
            "rule": *self.rule.name,
            "method": self.method(),
            "path": self.path(),
            "match": self.request.map(ToString::to_string),
        })
    }
}

impl std::fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.method(), self.path()) {
            _ if self.request.is_some_and(|request| !request.is_plain()) => {
                self.request.iter().try_for_each(|request| write!(f, "{request}"))?;
            }
            (None, None) => f.write_str("every request")?,
            (method, path) => {
                write!(f, "{} {}", method.unwrap_or("any method"), path.unwrap_or("any path"))?;
            }
        }
        write!(f, "   by {:?} ({})", self.rule.name, self.rule.origin)
    }
}

fn step_line(step: &Step) -> String {
    let (sign, tone) = match (step.matched, step.action) {
        (false, _) => ("-", Tone::Quiet),
        (true, Action::Allow) => ("+", Tone::Good),
        (true, Action::Deny) => ("x", Tone::Bad),
    };
    let matched = if step.matched { "matches" } else { "doesn't match" };
    let origin = step.origin.as_ref().map(|origin| format!(" ({origin})")).unwrap_or_default();
    let rule = format!("{sign} {} {:?}{origin}", action_word(step.action), step.rule);
    format!("  {} {matched}: {}\n", paint(&clean(&rule), tone), clean(&step.reason))
}

fn named(decision: &Decision<'_>) -> String {
    let origin = decision.origin.map(|origin| format!(" ({origin})")).unwrap_or_default();
    clean(&format!("{:?}{origin}", decision.name))
}

const fn action_word(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    }
}

/// Whether a rule's subject means an identity.
fn covers(subject: &Subject, who: &Identity) -> bool {
    match (subject, who) {
        (Subject::Any, _)
        | (Subject::AnyService, Identity::Service { .. })
        | (Subject::AnyHost, Identity::Host(_))
        | (Subject::AnyDevice, Identity::Device(_)) => true,
        (Subject::Service(wanted), Identity::Service { name, .. })
        | (Subject::Host(wanted), Identity::Host(name))
        | (Subject::Device(wanted), Identity::Device(name)) => wanted == name,
        (Subject::Namespace(wanted), Identity::Service { namespace, .. }) => wanted == namespace,
        (
            Subject::AnyService
            | Subject::AnyHost
            | Subject::AnyDevice
            | Subject::Service(_)
            | Subject::Namespace(_)
            | Subject::Host(_)
            | Subject::Device(_),
            _,
        ) => false,
    }
}

#[cfg(test)]
mod tests;
