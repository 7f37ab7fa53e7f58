//! A decision, step by step.

use std::sync::Arc;

use isthmus_model::route::{FieldMatch, Pattern as RegexPattern};
use isthmus_model::{Action, Identity, Layer4, Origin, RequestMatch, Rule, Subject};

use crate::engine::{Asked, Case, Fit, Lack, Recorder, Target, Traffic, covers};
use crate::policy::Policy;
use crate::suggest::Suggestion;
use crate::verdict::{BuiltIn, DecidedBy, Outcome, Query, RuleId, Verdict};

/// More steps than this only hide the one that matters.
const MAX_STEPS: usize = 50;

/// A verdict, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What was decided; exactly what [`Policy::evaluate`] says.
    pub verdict: Verdict,
    /// The rules that relate the two, in the order they were tried, up to the one that decided. At
    /// most 50.
    pub steps: Vec<Step>,
    /// How many steps were left out: those before the last ones.
    pub omitted: usize,
    /// What might be wrong, where it was denied.
    pub hint: Option<String>,
    /// The rule to add, where nothing allowed it.
    pub suggestion: Option<Suggestion>,
}

/// A rule that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub rule: Arc<str>,
    /// What it does when it matches.
    pub action: Action,
    /// Where it stands; none for what is built in.
    pub origin: Option<Origin>,
    /// Whether it matched.
    pub matched: bool,
    /// Why it did or didn't.
    pub reason: String,
}

/// Takes notes.
#[derive(Debug, Default)]
pub(crate) struct Log {
    steps: Vec<Step>,
    omitted: usize,
}

impl Recorder for Log {
    const WANTS_ALL: bool = true;

    fn rule(&mut self, policy: &Policy, id: RuleId, fit: Fit, case: &Case<'_>) {
        let rule = policy.rule(id);
        self.push(Step {
            rule: rule.name.clone(),
            action: rule.action,
            origin: Some(rule.origin.clone()),
            matched: fit == Fit::Yes || (fit == Fit::Maybe && rule.action == Action::Allow),
            reason: reason(policy, id, fit, case),
        });
    }

    fn built_in(&mut self, built_in: BuiltIn) {
        self.push(Step {
            rule: built_in.name().into(),
            action: Action::Allow,
            origin: None,
            matched: true,
            reason: "every mesh allows it".to_owned(),
        });
    }
}

impl Log {
    /// Keeps the last steps: the last one decided.
    fn push(&mut self, step: Step) {
        if self.steps.len() == MAX_STEPS {
            self.steps.remove(0);
            self.omitted += 1;
        }
        self.steps.push(step);
    }

    pub(crate) fn finish(
        self,
        policy: &Policy,
        query: &Query<'_>,
        verdict: Verdict,
    ) -> Explanation {
        let Self { steps, omitted } = self;
        let hint = hint(policy, query, &verdict);
        let suggestion = policy.suggest(query, &verdict);
        Explanation { verdict, steps, omitted, hint, suggestion }
    }
}

fn reason(policy: &Policy, id: RuleId, fit: Fit, case: &Case<'_>) -> String {
    let audit = if policy.rule(id).audit { ", but it only logs" } else { "" };
    match fit {
        Fit::Yes => match matching_entry(policy, id, case) {
            Some(entry) => format!("its `http` entry {entry} covers it{audit}"),
            None => format!("it covers {}{audit}", case.layer4),
        },
        Fit::Maybe => "it depends on the request, or on the server's name".to_owned(),
        Fit::Ambiguous(why) => format!("it can't judge this path: {why}{audit}"),
        Fit::OtherPort => other_port(policy, id, case),
        Fit::NoRequest => "it covers HTTP requests only".to_owned(),
        Fit::OtherRequest => other_request(policy, id, case),
        Fit::NoTls => "it covers TLS only".to_owned(),
        Fit::OtherName => "it covers other server names".to_owned(),
    }
}

fn other_port(policy: &Policy, id: RuleId, case: &Case<'_>) -> String {
    let ports = &policy.rule(id).ports;
    let covered = match case.target {
        Target::Service(served) if ports.is_empty() => served.layer4.to_string(),
        Target::UnknownService if ports.is_empty() => {
            "a port that the service doesn't have".to_owned()
        }
        Target::Service(_) | Target::UnknownService | Target::Machine => {
            ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        }
    };
    format!("it covers {covered}, not {}", case.layer4)
}

fn other_request(policy: &Policy, id: RuleId, case: &Case<'_>) -> String {
    let Traffic::Request(asked) = &case.traffic else {
        return "it covers other requests".to_owned();
    };
    let (method, path) = (asked.request.method, asked.path.as_deref().unwrap_or("?"));
    match (nearest_entry(policy, id, asked), policy.rule(id).http.len()) {
        (Some((entry, lack)), 1) => lacking(entry, lack, asked),
        (Some((entry, lack)), _) if closeness(&lack) > CLOSE_BY_PATH => {
            format!("of its `http` entries {entry} comes nearest: {}", lacking(entry, lack, asked))
        }
        (Some(_) | None, _) => format!("none of its `http` entries matches {method} {path}"),
    }
}

/// The first entry of a rule that fits the request.
fn matching_entry<'p>(policy: &'p Policy, id: RuleId, case: &Case<'_>) -> Option<&'p RequestMatch> {
    let Traffic::Request(asked) = &case.traffic else { return None };
    let rule = policy.rule(id);
    let mut entries = policy.requests[id.0 as usize].iter().zip(&rule.http);
    entries.find(|(pattern, _)| asked.lack(pattern, rule.action).is_ok()).map(|(_, entry)| entry)
}

/// The entry of a rule that the request misses last, and how.
fn nearest_entry<'p>(
    policy: &'p Policy,
    id: RuleId,
    asked: &Asked<'_>,
) -> Option<(&'p RequestMatch, Lack<'p>)> {
    let rule = policy.rule(id);
    let entries = policy.requests[id.0 as usize].iter().zip(&rule.http);
    let lacks = entries.filter_map(|(pattern, entry)| match asked.lack(pattern, rule.action) {
        Err(Ok(lack)) => Some((entry, lack)),
        Ok(()) | Err(Err(_)) => None,
    });
    // Of equals the first: `max_by_key` would give the last.
    lacks.reduce(|best, next| if closeness(&next.1) > closeness(&best.1) { next } else { best })
}

const CLOSE_BY_PATH: u8 = 1;

/// How much of a request fits before this lacks: what is compared first comes first.
const fn closeness(lack: &Lack<'_>) -> u8 {
    match lack {
        Lack::Method => 0,
        Lack::Path => CLOSE_BY_PATH,
        Lack::Host => 2,
        Lack::Header(_) => 3,
        Lack::Parameter(_) => 4,
        Lack::Token => 5,
        Lack::Claim(_) => 6,
        Lack::Condition(_) => 7,
    }
}

fn lacking(entry: &RequestMatch, lack: Lack<'_>, asked: &Asked<'_>) -> String {
    let (method, path) = (asked.request.method, asked.path.as_deref().unwrap_or("?"));
    match lack {
        Lack::Method => {
            format!("method {method} is not {}", entry.method.as_deref().unwrap_or("*"))
        }
        Lack::Path => {
            let regex = || entry.path_regex.as_ref().map_or("*", RegexPattern::as_str);
            format!("path {path} doesn't match {}", entry.path.as_deref().unwrap_or_else(regex))
        }
        Lack::Host => format!("host {:?} doesn't match", asked.request.host),
        Lack::Header(name) => {
            format!("header `{name}` doesn't match {}", field(&entry.headers, name))
        }
        Lack::Parameter(name) => {
            format!("parameter `{name}` doesn't match {}", field(&entry.query, name))
        }
        Lack::Token => {
            let provider = entry.jwt.as_ref().map_or("", |jwt| jwt.provider.name.as_str());
            format!("there is no token of {provider:?}")
        }
        Lack::Claim(name) => {
            let claims = entry.jwt.as_ref().map_or(&[][..], |jwt| &jwt.claims);
            format!("claim `{name}` doesn't match {}", field(claims, name))
        }
        Lack::Condition(None) => "its condition doesn't hold".to_owned(),
        Lack::Condition(Some(why)) => format!("its condition can't be told: {why}"),
    }
}

/// What a field has to be.
fn field(fields: &[FieldMatch], name: &str) -> String {
    fields.iter().find(|field| &*field.name == name).map(ToString::to_string).unwrap_or_default()
}

/// What might be wrong, where it was denied.
fn hint(policy: &Policy, query: &Query<'_>, verdict: &Verdict) -> Option<String> {
    let denier = match verdict.outcome {
        Outcome::Deny => Some(verdict.decided_by),
        Outcome::Allow | Outcome::Inspect => verdict.would_deny,
    };
    match denier? {
        DecidedBy::Rule(id) => Some(format!(
            "no [[allow]] overrules a [[deny]]: narrow {}, or take it away",
            title(policy, id)
        )),
        DecidedBy::BuiltIn(BuiltIn::HostPing | BuiltIn::DeviceDns) => None,
        DecidedBy::BuiltIn(BuiltIn::AmbiguousPath) => {
            Some("write the path in one way only: no '//', '..', ';' or encoded slash".to_owned())
        }
        DecidedBy::Default => Some(nearest(policy, query)),
    }
}

/// The rule that comes nearest to allowing it.
fn nearest(policy: &Policy, query: &Query<'_>) -> String {
    let case = policy.case(query, None);
    if let (Target::Service(_), Layer4::Other(_)) = (case.target, case.layer4) {
        return format!("rules to services know tcp, udp and icmp only, not {}", case.layer4);
    }
    let related = policy.allows.related(case.from, case.to).map(RuleId);
    // `max_by_key` gives the last of equals; people expect the first.
    if let Some(id) = related.min_by_key(|id| std::cmp::Reverse(nearness(policy, *id, &case))) {
        let why = reason(policy, id, policy.fit(id, &case), &case);
        return format!("{} comes nearest: {why}", title(policy, id));
    }
    let allows =
        || (0..).map(RuleId).zip(policy.rules()).filter(|(_, r)| r.action == Action::Allow);
    let towards = |rule: &Rule| rule.to.iter().any(|subject| names(subject, query.to));
    if let Some((id, rule)) = allows().find(|(_, rule)| towards(rule) && covers(rule, &case)) {
        return format!("{} allows it, but from {} only", title(policy, id), list(&rule.from));
    }
    if let Some(id) = policy.allows.related(case.to, case.from).map(RuleId).next() {
        let (from, to) = (query.from, query.to);
        return format!("{} allows flows from {to} to {from}, not back", title(policy, id));
    }
    match allows().find(|(_, rule)| towards(rule)) {
        Some((id, rule)) => {
            let (from, to) = (list(&rule.from), query.to);
            format!("{} allows something else to {to}, from {from}", title(policy, id))
        }
        None => format!("no rule allows anything to {}", query.to),
    }
}

/// How near a rule that relates the two comes to allowing what is asked.
fn nearness(policy: &Policy, id: RuleId, case: &Case<'_>) -> u8 {
    match (policy.fit(id, case), &case.traffic) {
        (Fit::OtherPort, _) => 0,
        (Fit::OtherRequest, Traffic::Request(asked)) => {
            2 + nearest_entry(policy, id, asked).map_or(0, |(_, lack)| closeness(&lack))
        }
        (
            Fit::Yes
            | Fit::Maybe
            | Fit::Ambiguous(_)
            | Fit::NoRequest
            | Fit::OtherRequest
            | Fit::NoTls
            | Fit::OtherName,
            _,
        ) => 1,
    }
}

fn title(policy: &Policy, id: RuleId) -> String {
    let rule = policy.rule(id);
    format!("rule {:?} ({})", rule.name, rule.origin)
}

fn list(subjects: &[Subject]) -> String {
    let shown: Vec<String> = subjects.iter().take(5).map(ToString::to_string).collect();
    let more = subjects.len().saturating_sub(shown.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &more
}

/// Whether a subject names an identity.
pub(crate) fn names(subject: &Subject, identity: &Identity) -> bool {
    match (subject, identity) {
        (Subject::Any, _)
        | (Subject::AnyService, Identity::Service { .. })
        | (Subject::AnyHost, Identity::Host(_))
        | (Subject::AnyDevice, Identity::Device(_)) => true,
        (Subject::Service(name), Identity::Service { name: of, .. })
        | (Subject::Namespace(name), Identity::Service { namespace: of, .. })
        | (Subject::Host(name), Identity::Host(of))
        | (Subject::Device(name), Identity::Device(of)) => name == of,
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
