use crate::policy::Policy;
use crate::vectors;

#[test]
fn every_vector_gets_its_verdict() {
    let mut complaints = Vec::new();
    let mut count = 0;
    for vector in vectors::all() {
        let policy = Policy::for_topology(&vector.topology);
        for case in &vector.cases {
            count += 1;
            let verdict = policy.evaluate(&case.query());
            let complaint = case.complaint(&policy, &verdict);
            complaints.extend(complaint.map(|complaint| format!("{}: {complaint}", vector.file)));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(count >= 120, "only {count} cases were read");
}

#[test]
fn explain_tells_the_same_and_ends_with_what_decided() {
    for vector in vectors::all() {
        let policy = Policy::for_topology(&vector.topology);
        for case in &vector.cases {
            let explanation = policy.explain(&case.query());
            assert_eq!(explanation.verdict, policy.evaluate(&case.query()), "{}", case.name);
            let decision = policy.describe(&explanation.verdict);
            if decision.origin.is_some() {
                let last = explanation.steps.last().unwrap();
                assert_eq!((&*last.rule, last.matched), (decision.name, true), "{}", case.name);
                assert_eq!(last.origin.as_ref(), decision.origin);
            }
        }
    }
}
