//! The rule that would allow what nothing allows.

use std::fmt;

use isthmus_model::jwt::JwtMatch;
use isthmus_model::route::{FieldMatch, Pattern as RegexPattern, ValueMatch};
use isthmus_model::{
    Action, Identity, Layer4, Origin, PortRule, RequestMatch, Rule, Rules, Subject,
};

use crate::engine::{Asked, Case, Target, Traffic};
use crate::fields::text;
use crate::policy::Policy;
use crate::verdict::{DecidedBy, Outcome, Query, Verdict};

/// Of a rule's name in topologies.
const LONGEST_NAME: usize = 128;
/// Longer paths are nothing to write into a rule.
const LONGEST_PATH: usize = 1024;

/// A rule that, added to the topology, allows what was asked. As narrow as what was asked: these two,
/// this port, this method and path, and what the token says. Shown as TOML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggestion(Rule);

impl Suggestion {
    /// The rule.
    #[must_use]
    pub const fn rule(&self) -> &Rule {
        &self.0
    }
}

impl Policy {
    /// What to add where nothing allows what is asked. None where something else decided, or where no
    /// rule can allow it, such as a path that can be read in two ways.
    pub(crate) fn suggest(&self, query: &Query<'_>, verdict: &Verdict) -> Option<Suggestion> {
        let denier = match verdict.outcome {
            Outcome::Deny => verdict.decided_by,
            Outcome::Allow | Outcome::Inspect => verdict.would_deny?,
        };
        if denier != DecidedBy::Default {
            return None;
        }
        let case = self.case(query, None);
        let rule = Rule {
            name: self.unused_name(query).into(),
            action: Action::Allow,
            from: vec![subject(query.from)],
            to: vec![subject(query.to)],
            ports: ports(&case)?,
            http: requests(self, query, &case)?,
            sni: Vec::new(),
            audit: false,
            origin: Origin { file: "".into(), line: 0 },
        };
        self.allows(&rule, query).then_some(Suggestion(rule))
    }

    /// Whether a rule alone allows what is asked.
    fn allows(&self, rule: &Rule, query: &Query<'_>) -> bool {
        let rules = Rules {
            default: Action::Deny,
            audit: false,
            audited: Vec::new(),
            rules: vec![rule.clone()],
        };
        !Self::new(&rules, self.services.clone()).evaluate(query).denies()
    }

    /// Names are unique in a topology.
    fn unused_name(&self, query: &Query<'_>) -> String {
        let mut name = format!("{} to {}", query.from, query.to);
        match query.request {
            Some(request) => name.push_str(&format!(", {} {}", request.method, request.path)),
            None => name.push_str(&format!(", {}", query.layer4)),
        }
        let room = LONGEST_NAME - " (100000)".len();
        let name: String = name.chars().filter(|it| !it.is_control()).take(room).collect();
        let is_taken = |name: &str| self.rules.iter().any(|rule| *rule.name == *name);
        let others = (2..).map(|number| format!("{name} ({number})"));
        let mut names = std::iter::once(name.clone()).chain(others);
        names.find(|name| !is_taken(name)).unwrap_or(name)
    }
}

fn subject(identity: &Identity) -> Subject {
    match identity {
        Identity::Host(name) => Subject::Host(name.clone()),
        Identity::Device(name) => Subject::Device(name.clone()),
        Identity::Service { name, .. } => Subject::Service(name.clone()),
    }
}

/// None if no rule can name them.
fn ports(case: &Case<'_>) -> Option<Vec<PortRule>> {
    match (case.target, case.layer4) {
        // What is said about requests is about the service's own port.
        (Target::Service(served), _)
            if !served.extra && matches!(case.traffic, Traffic::Request(_)) =>
        {
            Some(Vec::new())
        }
        // Without ports the rule would allow pings, too.
        (_, Layer4::Tcp(port)) => Some(vec![PortRule::Tcp(port, port)]),
        (_, Layer4::Udp(port)) => Some(vec![PortRule::Udp(port, port)]),
        (_, Layer4::Icmp) => Some(vec![PortRule::Icmp]),
        // Only a rule about everything covers it.
        (Target::Machine, Layer4::Other(_)) => Some(Vec::new()),
        (Target::Service(_) | Target::UnknownService, Layer4::Other(_)) => None,
    }
}

/// None if no rule can name the request.
fn requests(policy: &Policy, query: &Query<'_>, case: &Case<'_>) -> Option<Vec<RequestMatch>> {
    let Traffic::Request(asked) = &case.traffic else { return Some(Vec::new()) };
    let method = asked.request.method;
    if method.is_empty() || method.len() > 64 || method.bytes().any(|it| !is_of_methods(it)) {
        return None;
    }
    let (path, path_regex) = path(asked)?;
    Some(vec![RequestMatch {
        method: Some(method.into()),
        path: path.map(Into::into),
        path_regex,
        jwt: token(policy, query, asked),
        ..RequestMatch::default()
    }])
}

/// Topologies write methods in capitals.
fn is_of_methods(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"!#$%&'+-.^_`|~".contains(&byte)
}

/// A template, or an expression for what no template can say. `OPTIONS *` has no path that a rule could
/// compare.
fn path(asked: &Asked<'_>) -> Option<(Option<String>, Option<RegexPattern>)> {
    if asked.request.path == "*" {
        return Some((None, None));
    }
    let path = asked.path.as_deref().ok()?;
    if path.len() > LONGEST_PATH {
        return None;
    }
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"%;\\?#*{}".contains(&byte);
    if path.bytes().all(plain) {
        return Some((Some(path.to_owned()), None));
    }
    let escaped: String = path
        .chars()
        .flat_map(|letter| {
            let escape = "\\.+*?()|[]{}^$".contains(letter).then_some('\\');
            escape.into_iter().chain([letter])
        })
        .collect();
    Some((None, Some(escaped.parse().ok()?)))
}

/// Claims of the first token that rules here know.
fn token(policy: &Policy, query: &Query<'_>, asked: &Asked<'_>) -> Option<JwtMatch> {
    let providers = policy.providers(query.to);
    let (provider, token) = asked.request.tokens.iter().find_map(|token| {
        let provider = providers.iter().find(|provider| provider.name == token.provider)?;
        Some((provider, token))
    })?;
    let claims = token.claims.iter().filter_map(|(name, value)| {
        let one = value.as_array().map_or(Some(value), |list| list.first())?;
        let text = text(one)?;
        // A list of words, any of which may fit.
        let text = if name == "scope" { text.split(' ').next()? } else { &*text };
        let is_name = !name.is_empty() && name.len() <= 128 && !name.contains(char::is_control);
        is_name.then(|| FieldMatch {
            name: name.as_str().into(),
            value: ValueMatch::Exact(text.into()),
        })
    });
    Some(JwtMatch { provider: provider.clone(), claims: claims.collect() })
}

/// As topologies write it.
impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule { name, from, to, ports, http, .. } = &self.0;
        writeln!(f, "[[allow]]")?;
        writeln!(f, "name = {}", quoted(name))?;
        from.iter().try_for_each(|from| writeln!(f, "from = {}", quoted(&from.to_string())))?;
        to.iter().try_for_each(|to| writeln!(f, "to = {}", quoted(&to.to_string())))?;
        ports.iter().try_for_each(|port| writeln!(f, "ports = [{}]", quoted(&port.to_string())))?;
        http.iter().try_for_each(|entry| writeln!(f, "http = [{{ {} }}]", request(entry)))
    }
}

fn request(entry: &RequestMatch) -> String {
    let method = entry.method.iter().map(|method| format!("method = {}", quoted(method)));
    let path = entry.path.iter().map(|path| format!("path = {}", quoted(path)));
    let regex = entry.path_regex.iter();
    let regex = regex.map(|regex| format!("path = {{ regex = {} }}", quoted(regex.as_str())));
    let jwt = entry.jwt.iter().map(|jwt| {
        let claims = jwt.claims.iter().filter_map(|claim| match &claim.value {
            ValueMatch::Exact(text) => Some(format!("{} = {}", quoted(&claim.name), quoted(text))),
            ValueMatch::Regex(_) | ValueMatch::Present | ValueMatch::Absent => None,
        });
        let claims = claims.collect::<Vec<_>>().join(", ");
        let claims = if claims.is_empty() { claims } else { format!(", claims = {{ {claims} }}") };
        format!("jwt = {{ provider = {}{claims} }}", quoted(jwt.provider.name.as_str()))
    });
    method.chain(path).chain(regex).chain(jwt).collect::<Vec<_>>().join(", ")
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            _ if letter.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(letter))),
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
