//! Large policies: what a decision looks at must not grow with what doesn't concern it.

use isthmus_model::topology::{SourceFile, parse};
use isthmus_model::{
    Action, Application, Identity, Layer4, Name, Origin, PathMode, Protocol, Rule, Rules, Subject,
};

use crate::engine::{Case, Fit, Recorder};
use crate::policy::{Policy, Served, Services};
use crate::verdict::{BuiltIn, Outcome, Query, Request, RuleId};

const SERVICES: usize = 1_000;

#[test]
fn a_decision_looks_at_the_rules_of_its_pair_only() {
    let rules = (0..100_000).map(|n| rule(&[n % SERVICES], &[n / SERVICES])).collect();
    let policy = policy(rules);
    assert_eq!(look(&policy, 7, 9), (Outcome::Allow, 1));
    assert_eq!(look(&policy, 7, 500), (Outcome::Deny, 0));
}

#[test]
fn a_rule_for_everyone_by_name_stays_small() {
    let everyone: Vec<usize> = (0..SERVICES).collect();
    let policy = policy(vec![rule(&everyone, &everyone), rule(&[7], &[9])]);
    assert_eq!(look(&policy, 7, 9), (Outcome::Allow, 1));
    assert_eq!(look(&policy, 999, 0), (Outcome::Allow, 1));
    assert!(policy.allows.entries() < 2 * SERVICES + 2, "a million pairs aren't spelled out");
}

#[test]
fn a_request_looks_at_the_rules_of_its_path_only() {
    let path = |n: usize| match n % 4 {
        0 => format!("path = \"/a{n}/{{id}}/x\""),
        1 => format!("path = \"/{{id}}/b{n}/**\""),
        2 => format!("path = \"/c/{n}\", method = \"GET\""),
        _ => format!("path = {{ regex = \"/d{n}/[0-9]+\" }}"),
    };
    let rules = (0..10_000).map(|n| {
        let kind = if n < 5_000 { "deny" } else { "allow" };
        format!(
            "[[{kind}]]\nname = \"r{n}\"\nfrom = \"service:a\"\nto = \"service:b\"\nhttp = [{{ {} }}]\n",
            path(n)
        )
    });
    let text = "[host.h]\n[service.a]\nport = 1\nhosts = [\"h\"]\n[service.b]\nport = 80\n\
                protocol = \"http\"\nhosts = [\"h\"]\n"
        .to_owned()
        + &rules.collect::<String>();
    let file = SourceFile { name: "mesh.toml".into(), text };
    let topology = parse(&[file]).unwrap_or_else(|errors| panic!("{errors:#?}"));
    let policy = Policy::for_topology(&topology);
    for n in [0, 1, 2, 3] {
        assert_eq!(asked(&policy, Some(&path_of(n))), (Outcome::Deny, 1), "{n}");
        assert_eq!(asked(&policy, Some(&path_of(9_996 + n))), (Outcome::Allow, 1), "{n}");
    }
    assert_eq!(asked(&policy, Some("/other")), (Outcome::Deny, 0));
    // It may be no deny rule's, and the first allow rule leaves it to the proxy.
    assert_eq!(asked(&policy, None), (Outcome::Inspect, 1));
}

/// The verdict, and at how many rules it looked.
fn asked(policy: &Policy, path: Option<&str>) -> (Outcome, usize) {
    let identity = |text| Identity::Service { namespace: name("default"), name: name(text) };
    let (from, to) = (identity("a"), identity("b"));
    let request = path.map(|path| Request::new("GET", path));
    let mut count = Count(0);
    let query = Query { from: &from, to: &to, layer4: Layer4::Tcp(80), request };
    let verdict = policy.judge(&query, None, &mut count);
    (verdict.outcome, count.0)
}

/// What the rule with this number asks for.
fn path_of(n: usize) -> String {
    match n % 4 {
        0 => format!("/a{n}/7/x"),
        1 => format!("/7/b{n}/x/y"),
        2 => format!("/c/{n}"),
        _ => format!("/d{n}/7"),
    }
}

fn look(policy: &Policy, from: usize, to: usize) -> (Outcome, usize) {
    let identity = |n| Identity::Service { namespace: name("prod"), name: service(n) };
    let (from, to) = (identity(from), identity(to));
    let mut count = Count(0);
    let query = Query { from: &from, to: &to, layer4: Layer4::Tcp(80), request: None };
    let verdict = policy.judge(&query, None, &mut count);
    (verdict.outcome, count.0)
}

struct Count(usize);

impl Recorder for Count {
    const WANTS_ALL: bool = false;

    fn rule(&mut self, _: &Policy, _: RuleId, _: Fit, _: &Case<'_>) {
        self.0 += 1;
    }

    fn built_in(&mut self, _: BuiltIn) {}
}

fn policy(rules: Vec<Rule>) -> Policy {
    let own = Served::new(80, Protocol::Tcp, Application::default(), PathMode::AsIs);
    let mut services = Services::default();
    (0..SERVICES).for_each(|n| services.add(&service(n), own, &[]));
    let rules = Rules { default: Action::Deny, audit: false, audited: Vec::new(), rules };
    Policy::new(&rules, services)
}

fn rule(from: &[usize], to: &[usize]) -> Rule {
    let subjects = |of: &[usize]| of.iter().map(|n| Subject::Service(service(*n))).collect();
    Rule {
        name: "rule".into(),
        action: Action::Allow,
        from: subjects(from),
        to: subjects(to),
        ports: Vec::new(),
        http: Vec::new(),
        sni: Vec::new(),
        audit: false,
        origin: Origin { file: "mesh.toml".into(), line: 1 },
    }
}

fn service(n: usize) -> Name {
    name(&format!("s{n}"))
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}
