//! The engine against a reference that is slow, simple and written apart from it.

use isthmus_model::{
    Action, Application, Identity, Layer4, Name, Origin, PathMode, PortRule, Protocol,
    RequestMatch, Rule, Rules, Subject,
};
use proptest::prelude::*;

use crate::explain::names;
use crate::policy::{Policy, Served, Services};
use crate::verdict::{BuiltIn, DecidedBy, Outcome, Query, Request, RuleId, Verdict};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_engine_agrees_with_the_reference(rules in some_rules(), ask in a_question()) {
        let policy = Policy::new(&rules, services());
        let verdict = policy.evaluate(&ask.query());
        prop_assert_eq!(verdict, reference(&rules, &ask));
        prop_assert_eq!(policy.explain(&ask.query()).verdict, verdict);
    }

    #[test]
    fn of_many_rules_between_two_none_is_passed_over_that_counts(
        rules in rules_of_one_pair(),
        ask in a_question(),
    ) {
        let policy = Policy::new(&rules, services());
        let ask = Ask { to: service("prod", "web"), layer4: Layer4::Tcp(80), ..ask };
        let verdict = policy.evaluate(&ask.query());
        prop_assert_eq!(verdict, reference(&rules, &ask));
        prop_assert_eq!(policy.explain(&ask.query()).verdict, verdict);
    }

    #[test]
    fn one_more_deny_allows_nothing_more(
        rules in some_rules(),
        extra in a_rule(),
        at in any::<prop::sample::Index>(),
        ask in a_question(),
    ) {
        let before = Policy::new(&rules, services()).evaluate(&ask.query());
        let mut more = rules;
        let extra = Rule { action: Action::Deny, audit: false, ..extra };
        more.rules.insert(at.index(more.rules.len() + 1), extra);
        let after = Policy::new(&more, services()).evaluate(&ask.query());
        prop_assert!(!before.denies() || after.denies());
    }

    #[test]
    fn one_more_allow_denies_no_more(rules in some_rules(), extra in a_rule(), ask in a_question()) {
        let before = Policy::new(&rules, services()).evaluate(&ask.query());
        let mut more = rules;
        more.rules.push(Rule { action: Action::Allow, audit: false, ..extra });
        let after = Policy::new(&more, services()).evaluate(&ask.query());
        prop_assert!(before.denies() || !after.denies());
    }

    #[test]
    fn who_isnt_related_is_never_allowed(rules in some_rules(), ask in a_question()) {
        let policy = Policy::new(&rules, services());
        let verdict = policy.evaluate(&ask.query());
        let ping = verdict.decided_by == DecidedBy::BuiltIn(BuiltIn::HostPing);
        prop_assert!(verdict.denies() || ping || policy.relates(&ask.from, &ask.to));
    }

    #[test]
    fn a_denied_first_packet_means_that_every_request_is(rules in some_rules(), ask in a_question()) {
        let policy = Policy::new(&rules, services());
        let first = Query { request: None, ..ask.query() };
        if policy.evaluate(&first).denies() {
            prop_assert!(policy.evaluate(&ask.query()).denies());
        }
    }

    #[test]
    fn audit_lets_pass_exactly_what_it_says_it_would_deny(
        rules in some_rules(),
        ask in a_question(),
    ) {
        let enforce = Rules { audit: false, audited: Vec::new(), ..rules.clone() };
        let audit = Rules { audit: true, ..rules };
        let enforced = Policy::new(&enforce, services()).evaluate(&ask.query());
        let audited = Policy::new(&audit, services()).evaluate(&ask.query());
        prop_assert!(!audited.denies());
        prop_assert_eq!(audited.decided_by, enforced.decided_by);
        if enforced.denies() {
            prop_assert_eq!(audited.would_deny, Some(enforced.decided_by));
        } else {
            prop_assert_eq!(audited, enforced);
        }
    }
}

/// A question that owns what it asks about.
#[derive(Clone, Debug)]
struct Ask {
    from: Identity,
    to: Identity,
    layer4: Layer4,
    request: Option<(&'static str, &'static RawPath)>,
}

impl Ask {
    fn query(&self) -> Query<'_> {
        let request = self.request.map(|(method, path)| Request::new(method, path.raw));
        Query { from: &self.from, to: &self.to, layer4: self.layer4, request }
    }
}

/// A path as sent, and as its segments should be understood; none where nobody can tell.
#[derive(Debug)]
struct RawPath {
    raw: &'static str,
    means: Option<&'static [&'static str]>,
}

const PATHS: &[RawPath] = &[
    RawPath { raw: "/", means: Some(&[]) },
    RawPath { raw: "/a", means: Some(&["a"]) },
    RawPath { raw: "/a/", means: Some(&["a"]) },
    RawPath { raw: "/%61", means: Some(&["a"]) },
    RawPath { raw: "/b", means: Some(&["b"]) },
    RawPath { raw: "/a/b", means: Some(&["a", "b"]) },
    RawPath { raw: "/a/b/c", means: Some(&["a", "b", "c"]) },
    RawPath { raw: "/b/%61/c", means: Some(&["b", "a", "c"]) },
    RawPath { raw: "/a//b", means: None },
    RawPath { raw: "/a/../b", means: None },
    RawPath { raw: "/a%2fb", means: None },
    RawPath { raw: "/a;b", means: None },
    RawPath { raw: "", means: None },
];

/// The pattern as written, and its segments.
const PATTERNS: &[(&str, &[&str])] = &[
    ("/", &[]),
    ("/*", &["*"]),
    ("/a", &["a"]),
    ("/a/*", &["a", "*"]),
    ("/*/b", &["*", "b"]),
    ("/*/*", &["*", "*"]),
    ("/a/b/c", &["a", "b", "c"]),
    ("/b/*/c", &["b", "*", "c"]),
    ("/**", &["**"]),
    ("/a/**", &["a", "**"]),
    ("/*/b/**", &["*", "b", "**"]),
];

/// The expression as written, and whether it fits segments.
type Fits = fn(&[&str]) -> bool;
const EXPRESSIONS: &[(&str, Fits)] = &[
    ("/a/.*", |path| matches!(path, ["a", _, ..])),
    ("/b/.+/c", |path| matches!(path, ["b", _, .., "c"])),
    ("/(a|b)", |path| matches!(path, ["a"] | ["b"])),
    ("/a(/b)?", |path| matches!(path, ["a"] | ["a", "b"])),
];

fn reference(rules: &Rules, ask: &Ask) -> Verdict {
    let web = matches!(&ask.to, Identity::Service { name, .. } if name.as_str() == "web");
    let http = web && ask.layer4 == Layer4::Tcp(80);
    let request = ask.request.filter(|_| http);
    let open = http && request.is_none();
    let deciders = |action: Action| {
        let rules = (0..).map(RuleId).zip(&rules.rules);
        rules
            .filter(move |(_, rule)| rule.action == action)
            .filter_map(move |(id, rule)| Some((id, rule, matches(rule, ask, http, request)?)))
    };
    let mut would_deny = None;
    let mut denier = None;
    for (id, rule, how) in deciders(Action::Deny) {
        let by = match how {
            How::Surely => DecidedBy::Rule(id),
            How::Perhaps => continue,
            How::CannotTell => DecidedBy::BuiltIn(BuiltIn::AmbiguousPath),
        };
        if rule.audit {
            would_deny = would_deny.or(Some(by));
        } else {
            denier = Some(by);
            break;
        }
    }
    let allow = || {
        let built_in = match (&ask.from, &ask.to, ask.layer4) {
            (Identity::Host(_), Identity::Host(_), Layer4::Icmp) => Some(BuiltIn::HostPing),
            (Identity::Device(_), Identity::Host(_), Layer4::Tcp(53) | Layer4::Udp(53)) => {
                Some(BuiltIn::DeviceDns)
            }
            _ => None,
        };
        let rule = || deciders(Action::Allow).find(|(_, _, how)| *how != How::CannotTell);
        built_in.map(DecidedBy::BuiltIn).or_else(|| rule().map(|(id, ..)| DecidedBy::Rule(id)))
    };
    let pass = if open { Outcome::Inspect } else { Outcome::Allow };
    let (denies, by) = match (denier, allow()) {
        (Some(by), _) => (true, by),
        (None, Some(by)) => (false, by),
        (None, None) if rules.default == Action::Allow => (false, DecidedBy::Default),
        (None, None) if deciders(Action::Allow).next().is_some() => {
            (true, DecidedBy::BuiltIn(BuiltIn::AmbiguousPath))
        }
        (None, None) => (true, DecidedBy::Default),
    };
    let audits = rules.audit || rules.audited.iter().any(|subject| names(subject, &ask.to));
    match (denies, audits) {
        (true, false) => Verdict { outcome: Outcome::Deny, decided_by: by, would_deny: None },
        (true, true) => Verdict { outcome: pass, decided_by: by, would_deny: Some(by) },
        (false, _) => Verdict { outcome: pass, decided_by: by, would_deny },
    }
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    Surely,
    Perhaps,
    CannotTell,
}

fn matches(rule: &Rule, ask: &Ask, http: bool, request: Option<(&str, &RawPath)>) -> Option<How> {
    let names = |subjects: &[Subject], who: &Identity| {
        let kind = who.to_string();
        let (kind, _) = kind.split_once(':').unwrap();
        let namespace = match who {
            Identity::Service { namespace, .. } => format!("namespace:{namespace}"),
            Identity::Host(_) | Identity::Device(_) => String::new(),
        };
        let known = ["any".to_owned(), format!("{kind}:*"), who.to_string(), namespace];
        subjects.iter().any(|subject| known.contains(&subject.to_string()))
    };
    let own = match ask.to.to_string().as_str() {
        "service:web" => Some("tcp/80"),
        "service:log" => Some("udp/514"),
        "service:db" => Some("tcp/5432"),
        _ => None,
    };
    let port = match own {
        _ if !rule.ports.is_empty() => rule.ports.iter().any(|port| port.matches(ask.layer4)),
        Some(own) => [own, "icmp"].contains(&&*ask.layer4.to_string()),
        None => true,
    };
    if !port || !names(&rule.from, &ask.from) || !names(&rule.to, &ask.to) {
        return None;
    }
    if rule.http.is_empty() {
        return Some(How::Surely);
    }
    if !http {
        return None;
    }
    let Some((method, path)) = request else {
        let all = rule.http.contains(&RequestMatch::default());
        return Some(if all { How::Surely } else { How::Perhaps });
    };
    // A deny means `get`, too, where it says GET.
    let asked = match rule.action {
        Action::Allow => method.to_owned(),
        Action::Deny => method.to_ascii_uppercase(),
    };
    let entries = rule.http.iter().filter(|e| e.method.as_deref().is_none_or(|m| m == asked));
    let hows: Vec<How> = entries
        .filter_map(|entry| match (&entry.path, &entry.path_regex, path.means) {
            (None, None, _) => Some(How::Surely),
            (_, _, None) => Some(How::CannotTell),
            (Some(pattern), _, Some(path)) => {
                let (_, pattern) = PATTERNS.iter().find(|(text, _)| *text == &**pattern).unwrap();
                path_matches(pattern, path).then_some(How::Surely)
            }
            (None, Some(expression), Some(path)) => {
                let mut known = EXPRESSIONS.iter();
                let (_, fits) = known.find(|(text, _)| *text == expression.as_str()).unwrap();
                fits(path).then_some(How::Surely)
            }
        })
        .collect();
    hows.iter().copied().find(|how| *how == How::Surely).or_else(|| hows.first().copied())
}

fn path_matches(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        (["*"], [_, ..]) | (["**"], _) => true,
        ([first, pattern @ ..], [segment, path @ ..]) => {
            (*first == "*" || first == segment) && path_matches(pattern, path)
        }
        ([], _) | (_, []) => false,
    }
}

fn services() -> Services {
    use Protocol::{Http, Tcp, Udp};
    let mut services = Services::default();
    for (name, port, protocol) in [("web", 80, Http), ("db", 5432, Tcp), ("log", 514, Udp)] {
        let own = Served::new(port, protocol, Application::default(), PathMode::AsIs);
        services.add(&name.parse().unwrap(), own, &[]);
    }
    services
}

fn some_rules() -> impl Strategy<Value = Rules> {
    let audit = prop::bool::weighted(0.2);
    let rules = prop::collection::vec(a_rule(), 0..8);
    (an_action(), audit, some_audited(), rules).prop_map(|(default, audit, audited, rules)| Rules {
        default,
        audit,
        audited,
        rules,
    })
}

fn some_audited() -> impl Strategy<Value = Vec<Subject>> {
    let named = ["service:web", "namespace:prod", "host:*"].map(|it| it.parse().unwrap());
    prop_oneof![3 => Just(Vec::new()), 1 => prop::sample::subsequence(named.to_vec(), 1..=3)]
}

/// So many that the index sorts them by path.
fn rules_of_one_pair() -> impl Strategy<Value = Rules> {
    let here = |mut rule: Rule| {
        rule.from = vec![Subject::Any];
        rule.to = vec!["service:web".parse().unwrap()];
        rule.ports.clear();
        rule
    };
    let asks_for_a_path = |rule: &Rule| {
        let has_path = |entry: &RequestMatch| entry.path.is_some() || entry.path_regex.is_some();
        rule.http.first().is_some_and(has_path)
    };
    let rules = prop::collection::vec(a_rule(), 60..120);
    (an_action(), prop::bool::weighted(0.2), rules).prop_map(move |(default, audit, rules)| {
        // Few that stop the search early.
        let keep =
            |(at, rule): (usize, Rule)| (at % 20 == 19 || asks_for_a_path(&rule)).then_some(rule);
        let rules = rules.into_iter().enumerate().filter_map(keep).map(here);
        Rules { default, audit, audited: Vec::new(), rules: rules.collect() }
    })
}

fn an_action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Deny), Just(Action::Allow)]
}

prop_compose! {
    fn a_rule()(
        action in an_action(),
        from in subjects(),
        to in subjects(),
        ports in prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(a_port(), 1..3)],
        http in prop_oneof![1 => Just(Vec::new()), 1 => prop::collection::vec(a_match(), 1..3)],
        audit in prop::bool::weighted(0.2),
    ) -> Rule {
        let audit = audit && action == Action::Deny;
        let origin = Origin { file: "mesh.toml".into(), line: 1 };
        Rule { name: "rule".into(), action, from, to, ports, http, sni: Vec::new(), audit, origin }
    }
}

/// Sometimes so many that the index takes them for wide.
fn subjects() -> impl Strategy<Value = Vec<Subject>> {
    let subject = prop::sample::select(vec![
        "any",
        "service:*",
        "service:web",
        "service:web",
        "service:db",
        "service:log",
        "namespace:prod",
        "namespace:ops",
        "host:*",
        "host:a",
        "device:*",
        "device:d",
    ]);
    let few = prop::collection::vec(subject.clone(), 1..3);
    let many = (subject, 16..40_usize).prop_map(|(one, count)| {
        let others = (0..count).map(|n| format!("service:s{n}"));
        std::iter::once(one.to_owned()).chain(others).collect::<Vec<_>>()
    });
    let few = few.prop_map(|few| few.into_iter().map(str::to_owned).collect());
    prop_oneof![4 => few, 1 => many]
        .prop_map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn a_port() -> impl Strategy<Value = PortRule> {
    prop::sample::select(vec!["tcp", "tcp/80", "tcp/50-90", "udp/514", "icmp", "udp"])
        .prop_map(|text| text.parse().unwrap())
}

fn a_match() -> impl Strategy<Value = RequestMatch> {
    let method = prop::option::of(prop::sample::select(vec!["GET", "POST"]));
    let path = prop::option::of(prop::sample::select(PATTERNS));
    let expression = prop::option::weighted(0.3, prop::sample::select(EXPRESSIONS));
    (method, path, expression).prop_map(|(method, path, expression)| RequestMatch {
        method: method.map(Into::into),
        path: path.map(|(text, _)| text.into()),
        path_regex: expression.filter(|_| path.is_none()).map(|(text, _)| text.parse().unwrap()),
        ..RequestMatch::default()
    })
}

prop_compose! {
    fn a_question()(
        from in an_identity(),
        to in an_identity(),
        web in prop::bool::weighted(0.5),
        layer4 in prop::sample::select(vec![
            "tcp/80", "tcp/80", "tcp/5432", "udp/514", "tcp/53", "udp/53", "icmp", "ip/47",
        ]),
        request in prop::option::weighted(0.7, (
            prop::sample::select(vec!["GET", "POST", "get"]),
            prop::sample::select((0..PATHS.len()).collect::<Vec<_>>()),
        )),
    ) -> Ask {
        let (to, layer4) = if web { (service("prod", "web"), "tcp/80") } else { (to, layer4) };
        let request = request.map(|(method, path)| (method, &PATHS[path]));
        Ask { from, to, layer4: layer4.parse().unwrap(), request }
    }
}

fn an_identity() -> impl Strategy<Value = Identity> {
    let name = |text: &str| -> Name { text.parse().unwrap() };
    prop::sample::select(vec![
        service("prod", "web"),
        service("prod", "db"),
        service("ops", "log"),
        Identity::Host(name("a")),
        Identity::Host(name("b")),
        Identity::Device(name("d")),
        Identity::Device(name("e")),
    ])
}

fn service(namespace: &str, name: &str) -> Identity {
    Identity::Service { namespace: namespace.parse().unwrap(), name: name.parse().unwrap() }
}
