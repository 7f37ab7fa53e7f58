//! Test support: private network namespaces (also those of other crates, by the feature
//! `testing`), and children.

use crate::netlink::Netlink;

#[cfg(test)]
mod tools;
#[cfg(test)]
pub(crate) use tools::{Shell, eventually};

/// Runs `test` on a thread in a network namespace of its own, with `lo` up.
///
/// The namespace belongs to the thread, so there is nothing to clean up, even after a panic.
///
/// # Panics
/// When `test` does, or the kernel gives no namespace: it wants root.
pub fn in_netns(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: takes no pointers; it changes this thread only.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "no network namespace: {}", std::io::Error::last_os_error());
        block_on(async { netlink().set_up(LOOPBACK).await.expect("every namespace has `lo`") });
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// `lo` is the first device of every namespace.
pub(crate) const LOOPBACK: u32 = 1;

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime needs no more than an epoll instance").block_on(future)
}

/// To be called inside [`block_on`].
pub(crate) fn netlink() -> Netlink {
    Netlink::connect().expect("the kernel has netlink")
}
