use super::*;

#[test]
fn a_snapshot_that_asks_for_more_than_this_agent_understands_is_not_worked_by() {
    let kept = |names: &[&str]| v1::SnapshotResources {
        revision: 7,
        capabilities: names.iter().map(|name| (*name).to_owned()).collect(),
        ..v1::SnapshotResources::default()
    };
    assert_eq!(too_new(&kept(&[])), None);
    assert_eq!(too_new(&kept(&["sni", "header"])), None);
    let problem = too_new(&kept(&["sni", "teleport"])).unwrap();
    assert!(problem.text.contains("revision 7") && problem.text.contains("teleport"));
}
