//! Waiting, and a shell.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Tries until it succeeds: the kernel finishes some of its work (an IPv6 address's route, say) a
/// moment after it has answered.
pub(crate) fn eventually<T, E: std::fmt::Debug>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "still: {error:?}"),
        }
        std::thread::yield_now();
    }
}

/// A shell in the calling thread's namespace that acts line by line, and dies with this value.
pub(crate) struct Shell(Child);

impl Shell {
    pub(crate) fn spawn(configure: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new("bash");
        command.arg("-s").stdin(Stdio::piped()).current_dir("/");
        configure(&mut command);
        Self(command.spawn().unwrap())
    }

    pub(crate) fn run(&mut self, line: &str) {
        let stdin = self.0.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
        stdin.flush().unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn end(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.end();
    }
}
