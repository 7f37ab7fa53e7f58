//! Kills of `isthmus-controller init`. A program of its own: between fork and exec, a child holds the locks
//! of all stores that its parent has open, and other tests would find theirs in use.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

fn init(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus-controller"));
    command.args(["init", "--name", "corp", "--trust-domain", "corp.example"]);
    command.args(["--address", "192.0.2.1:7443", "--state-dir"]).arg(state);
    command.stdout(Stdio::null());
    command
}

/// The unit test goes step by step; here the moments are those of a real disk.
#[test]
#[expect(clippy::disallowed_methods, reason = "rounds differ by the moment of the kill")]
fn an_init_that_was_killed_can_be_repeated() {
    let mut interrupted = 0;
    for round in 0..20_u64 {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let (unfinished, whole) = (state.join("mesh.toml.new"), state.join("mesh.toml"));
        let mut first = init(&state).spawn().unwrap();
        while !unfinished.exists() && !whole.exists() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_micros(round * 300));
        first.kill().unwrap();
        first.wait().unwrap();
        if whole.exists() {
            continue;
        }
        interrupted += 1;
        let again = init(&state).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success() && whole.exists(), "{round}: {said}");
    }
    assert!(interrupted > 0, "no round was interrupted");
}
