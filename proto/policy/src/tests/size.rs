//! Large policies: what a decision looks at must not grow with what doesn't concern it.

use isthmus_model::{
    Action, Application, Identity, Layer4, Name, Origin, PathMode, Protocol, Rule, Rules, Subject,
};

use crate::engine::{Case, Fit, Recorder};
use crate::index::Map;
use crate::policy::{Policy, Served};
use crate::verdict::{BuiltIn, Outcome, Query, RuleId};

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
    fn rule(&mut self, _: &Policy, _: RuleId, _: Fit, _: &Case<'_>) {
        self.0 += 1;
    }

    fn built_in(&mut self, _: BuiltIn) {}
}

fn policy(rules: Vec<Rule>) -> Policy {
    let of =
        |n| (service(n), Served::new(80, Protocol::Tcp, Application::default(), PathMode::AsIs));
    let served = (0..SERVICES).map(of);
    let rules = Rules { default: Action::Deny, audit: false, rules };
    Policy::new(&rules, served.collect::<Map<_, _>>())
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
