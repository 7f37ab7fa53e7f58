use super::*;
use crate::identity::tests::{identity, member};

fn directory() -> (tempfile::TempDir, StateDir) {
    let parent = tempfile::tempdir().unwrap();
    let state = StateDir::open(&parent.path().join("agent")).unwrap();
    (parent, state)
}

fn resources(revision: u64) -> v1::SnapshotResources {
    let resources = vec![v1::Resource { key: "policy".into(), body: None }];
    v1::SnapshotResources { revision, resources, ..v1::SnapshotResources::default() }
}

#[test]
fn an_identity_comes_back_as_it_was_kept() {
    let (_parent, state) = directory();
    assert!(state.identity().unwrap().is_none());
    let kept = identity();
    state.write_identity(&kept).unwrap();
    let found = state.identity().unwrap().unwrap();
    assert_eq!(found.member, member());
    assert_eq!(**found.tunnel.bytes(), **kept.tunnel.bytes());
    assert_eq!(*found.tls.key, *kept.tls.key);
    assert_eq!((found.tls.leaf, found.tls.ca), (kept.tls.leaf, kept.tls.ca));
}

#[test]
fn a_key_that_changes_stands_beside_the_former_until_it_takes_its_place() {
    let (parent, state) = directory();
    let kept = identity();
    state.write_identity(&kept).unwrap();
    assert!(state.change_key().is_err(), "there is none");
    let next = state.next_key().unwrap();
    let keys = |state: &StateDir| {
        let found = state.identity().unwrap().unwrap();
        (**found.tunnel.bytes(), found.next.map(|next| **next.bytes()))
    };
    // An agent that was killed after any of the steps has what it needs for the next.
    drop(state);
    let state = StateDir::open(&parent.path().join("agent")).unwrap();
    assert_eq!(keys(&state), (**kept.tunnel.bytes(), Some(**next.bytes())));
    assert_eq!(**state.next_key().unwrap().bytes(), **next.bytes());
    let mode = fs::metadata(state.path.join(NEXT_KEY)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    state.change_key().unwrap();
    assert_eq!(keys(&state), (**next.bytes(), None));
    assert!(!state.path.join(NEXT_KEY).exists());

    // Whoever leaves or joins anew meanwhile keeps neither.
    let former = state.identity().unwrap().unwrap();
    state.next_key().unwrap();
    state.write_identity(&Identity { next: None, ..former.clone() }).unwrap();
    assert_eq!(keys(&state), (**next.bytes(), None));
    state.next_key().unwrap();
    state.forget(&former).unwrap();
    let left = [MEMBER, TUNNEL_KEY, NEXT_KEY].map(|name| state.path.join(name).exists());
    assert_eq!(left, [false; 3]);
}

#[test]
fn only_the_owner_can_read_what_is_kept() {
    let (_parent, state) = directory();
    state.write_identity(&identity()).unwrap();
    state.write_snapshot(&resources(1)).unwrap();
    assert_eq!(fs::metadata(&state.path).unwrap().permissions().mode() & 0o777, 0o700);
    for entry in fs::read_dir(&state.path).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.path());
    }
}

#[test]
fn a_half_written_file_is_ignored_and_overwritten() {
    let (_parent, state) = directory();
    state.write_snapshot(&resources(1)).unwrap();
    fs::write(state.path.join("snapshot.new"), b"isthmus snap").unwrap();
    assert_eq!(state.snapshot().unwrap().unwrap().resources, resources(1));
    state.write_snapshot(&resources(2)).unwrap();
    assert_eq!(state.snapshot().unwrap().unwrap().resources, resources(2));
    assert!(!state.path.join("snapshot.new").exists());
}

#[test]
fn joining_that_was_interrupted_leaves_the_host_unjoined() {
    let (_parent, state) = directory();
    state.write_identity(&identity()).unwrap();
    fs::remove_file(state.path.join(MEMBER)).unwrap();
    assert!(state.identity().unwrap().is_none());
}

#[test]
fn a_damaged_snapshot_is_moved_aside() {
    let (_parent, state) = directory();
    state.write_snapshot(&resources(3)).unwrap();
    let mut bytes = fs::read(state.path.join(SNAPSHOT)).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(state.path.join(SNAPSHOT), &bytes).unwrap();
    assert!(state.snapshot().unwrap().is_none());
    assert_eq!(fs::read(state.path.join(DAMAGED)).unwrap(), bytes);
    for cut in [0, 5, SNAPSHOT_MAGIC.len() + 10] {
        fs::write(state.path.join(SNAPSHOT), &bytes[..cut]).unwrap();
        assert!(state.snapshot().unwrap().is_none(), "cut at {cut}");
    }
}

#[test]
fn a_snapshot_damaged_in_any_way_is_none() {
    let (_parent, state) = directory();
    state.write_snapshot(&resources(3)).unwrap();
    let whole = fs::read(state.path.join(SNAPSHOT)).unwrap();
    let cuts = (0..whole.len()).map(|at| whole[..at].to_vec());
    let flips = (0..whole.len() * 8).map(|bit| {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    });
    for bytes in cuts.chain(flips) {
        fs::write(state.path.join(SNAPSHOT), &bytes).unwrap();
        assert!(state.snapshot().unwrap().is_none());
    }
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let (_parent, state) = directory();
    let (one, other) = (identity(), identity());
    let mixed = [
        TlsIdentity { key: other.tls.key.clone(), ..one.tls.clone() },
        TlsIdentity { ca: other.tls.ca.clone(), ..one.tls.clone() },
    ];
    for tls in mixed {
        state.write_identity(&Identity { tls, ..one.clone() }).unwrap();
        let error = format!("{:#}", state.identity().err().unwrap());
        assert!(error.contains(TLS) && error.contains("belong"), "{error}");
    }
    state.write_identity(&one).unwrap();
    let elsewhere = Member { host: "app-2".parse().unwrap(), ..member() };
    state.write(MEMBER, elsewhere.to_toml().unwrap().as_bytes()).unwrap();
    let error = format!("{:#}", state.identity().err().unwrap());
    assert!(error.contains("host/app-2") && error.contains(TLS), "{error}");
}

/// A folder in the way stands for whatever makes writing fail: root may write where others may not.
#[test]
fn what_could_not_be_kept_is_kept_once_it_can_be() {
    let (_parent, state) = directory();
    state.write_snapshot(&resources(1)).unwrap();
    let ailments = state.tend();
    assert!(ailments.unwritable.is_none() && ailments.unkept.is_none());
    let in_the_way = ["snapshot.new", "probe.new"].map(|name| state.path.join(name));
    in_the_way.iter().for_each(|path| fs::create_dir(path).unwrap());
    state.write_snapshot(&resources(2)).unwrap_err();
    state.write_snapshot(&resources(3)).unwrap_err();
    let ailments = state.tend();
    assert!(ailments.unwritable.is_some());
    assert_eq!(ailments.unkept.unwrap().0, 3);
    assert_eq!(state.snapshot().unwrap().unwrap().resources, resources(1));
    in_the_way.iter().for_each(|path| fs::remove_dir(path).unwrap());
    let ailments = state.tend();
    assert!(ailments.unwritable.is_none() && ailments.unkept.is_none());
    assert_eq!(state.snapshot().unwrap().unwrap().resources, resources(3));
    let names = fs::read_dir(&state.path).unwrap().count();
    assert_eq!(names, 2, "the lock and the snapshot");
}

#[test]
fn a_lock_that_can_only_be_read_is_enough() {
    let (parent, state) = directory();
    drop(state);
    let path = parent.path().join("agent");
    fs::remove_file(path.join(LOCK)).unwrap();
    // Nobody can write a folder.
    fs::create_dir(path.join(LOCK)).unwrap();
    let _state = StateDir::open(&path).unwrap();
    let error = StateDir::open(&path).unwrap_err();
    assert!(error.to_string().contains("Another agent"), "{error}");
}

#[test]
fn a_damaged_identity_is_an_error_that_says_what_to_do() {
    let (_parent, state) = directory();
    state.write_identity(&identity()).unwrap();
    fs::write(state.path.join(TUNNEL_KEY), b"short").unwrap();
    let error = format!("{:#}", state.identity().err().unwrap());
    assert!(error.contains("join again") && error.contains(TUNNEL_KEY), "{error}");
}

#[test]
fn forgetting_leaves_nothing_of_the_mesh() {
    let (_parent, state) = directory();
    let former = identity();
    state.write_identity(&former).unwrap();
    state.write_snapshot(&resources(1)).unwrap();
    state.forget(&former).unwrap();
    state.forget(&former).unwrap();
    let left: Vec<_> = fs::read_dir(&state.path).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(left.len(), 1, "only the lock: {left:?}");
}

#[test]
fn a_former_membership_does_not_take_the_next_one_with_it() {
    let (_parent, state) = directory();
    let (former, next) = (identity(), identity());
    state.write_identity(&next).unwrap();
    state.forget(&former).unwrap();
    assert!(state.identity().unwrap().is_some());
    state.forget(&next).unwrap();
    // What was still to be written of it comes too late.
    state.write_member(&next.member).unwrap();
    assert!(state.identity().unwrap().is_none());
}

#[test]
fn a_join_that_is_repeated_has_the_same_keys_until_it_is_over() {
    let (parent, state) = directory();
    let public = |keys: &Keys| (keys.tunnel.public().unwrap(), keys.tls.to_der().to_vec());
    let first = public(&state.join_keys("token-1", "app-1").unwrap());
    drop(state);
    let state = StateDir::open(&parent.path().join("agent")).unwrap();
    assert_eq!(public(&state.join_keys("token-1", "app-1").unwrap()), first, "after a crash");
    assert_ne!(public(&state.join_keys("token-1", "app-2").unwrap()), first);
    assert_ne!(public(&state.join_keys("token-2", "app-1").unwrap()), first);
    let last = public(&state.join_keys("token-2", "app-1").unwrap());
    fs::write(state.path.join(JOINING), "token = 'token-2'\nhost = 'app-1'").unwrap();
    assert_ne!(public(&state.join_keys("token-2", "app-1").unwrap()), last, "damaged");
    state.forget_join_keys().unwrap();
    assert!(!state.path.join(JOINING).exists());
}

#[test]
fn a_confirmed_snapshot_is_as_old_as_its_confirmation() {
    let (_parent, state) = directory();
    let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    state.confirm_snapshot(at).unwrap();
    state.write_snapshot(&resources(1)).unwrap();
    state.confirm_snapshot(at).unwrap();
    assert_eq!(state.snapshot().unwrap().unwrap().confirmed, at);
}

#[test]
fn two_agents_cannot_share_a_directory() {
    let (parent, state) = directory();
    let error = StateDir::open(&parent.path().join("agent")).unwrap_err();
    assert!(error.to_string().contains("Another agent"), "{error}");
    drop(state);
    StateDir::open(&parent.path().join("agent")).unwrap();
}
