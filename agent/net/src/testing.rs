//! What the tests of this crate share: private network namespaces and children.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::netlink::Netlink;

/// Runs `test` on a thread in a network namespace of its own, with `lo` up.
///
/// The namespace belongs to the thread, so there is nothing to clean up, even after a panic.
pub(crate) fn in_netns(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: takes no pointers; it changes this thread only.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "no network namespace: {}", std::io::Error::last_os_error());
        block_on(async { netlink().set_up(LOOPBACK).await.unwrap() });
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// `lo` is the first device of every namespace.
pub(crate) const LOOPBACK: u32 = 1;

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// To be called inside [`block_on`].
pub(crate) fn netlink() -> Netlink {
    Netlink::connect().unwrap()
}

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
