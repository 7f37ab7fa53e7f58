//! Tunnel keys that change.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{empty, join};
use isthmus_controller_core::{Member, MeshSnapshot, RotationError, State};
use isthmus_model::{HostId, Name, PublicKey, Revision};

const KEY: PublicKey = PublicKey([9; 32]);

fn a() -> Name {
    "a".parse().unwrap()
}

/// Hosts a and b.
fn two() -> State {
    let state = join(&empty(), "a", &[]).unwrap().0;
    join(&state, "b", &[]).unwrap().0
}

fn key(state: &State) -> (PublicKey, Option<PublicKey>) {
    let world = MeshSnapshot::new(state);
    let host = &world.everything().hosts[&HostId(1)];
    (host.public_key, host.former_key)
}

#[test]
fn both_keys_are_good_from_the_agents_answer_to_the_end() {
    let state = two();
    let (before, _) = key(&state);
    assert_eq!(state.take_key(&a(), KEY, 100), None, "nobody wants one");
    let wanted = state.rotate("a", 300, false).unwrap();
    assert_eq!(key(&wanted), (before, None));
    let wanted = wanted.rotate("a", 300, false).unwrap();
    let other = wanted.inventory.member("b").unwrap().public_key;
    for bad in [before, other, PublicKey([0; 32])] {
        assert_eq!(wanted.take_key(&a(), bad, 100), None);
    }
    let both = wanted.take_key(&a(), KEY, 100).unwrap();
    assert_eq!(key(&both), (KEY, Some(before)));
    assert!(both.revision > wanted.revision);
    let refused = both.rotate("a", 300, false).unwrap_err();
    assert_eq!(refused, RotationError::Overlaps(a()));
    assert_eq!(both.take_key(&a(), PublicKey([8; 32]), 100), None, "one is enough");

    let revision = both.revision;
    let over = |now: i64| {
        move |member: &Member, until: i64, since: Revision| {
            assert_eq!((member.name.as_str(), until, since), ("a", 400, revision));
            now >= until
        }
    };
    assert_eq!(both.end_former_keys(over(399)), None);
    let ended = both.end_former_keys(over(400)).unwrap();
    assert_eq!(key(&ended), (KEY, None));
    assert_eq!(ended.end_former_keys(|_, _, _| true), None);
    assert!(ended.rotate("a", 300, false).is_ok());
}

#[test]
fn a_host_that_is_unknown_or_joins_anew_keeps_nobody_waiting() {
    let state = two();
    assert_eq!(state.rotate("c", 300, false), Err(RotationError::Unknown("c".to_owned())));
    let wanted = state.rotate("a", 300, false).unwrap();
    let newcomer = common::newcomer(&wanted, "a", &[]);
    let anew = wanted.join(isthmus_controller_core::Newcomer { is_expected: true, ..newcomer });
    assert_eq!(anew.unwrap().next.take_key(&a(), KEY, 100), None);
}
