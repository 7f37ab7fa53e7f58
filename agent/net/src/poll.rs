//! Readiness: a thin epoll, and a waker for other threads.
//!
//! Level-triggered, so that a reader may stop in the middle of a burst and be told again.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Watches file descriptors; each is known by the token it was added with.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// # Errors
    /// Fails when the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers; the result is checked before use.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel just gave us `fd`, and nobody else owns it.
        Ok(Self { epoll: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Watches `source` until it is removed, or closed everywhere.
    ///
    /// # Errors
    /// `AlreadyExists` when it is watched already.
    pub fn add(&self, source: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, source, token, interest)
    }

    /// # Errors
    /// `NotFound` when it isn't watched.
    pub fn remove(&self, source: &impl AsFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, source, 0, Interest::READ)
    }

    /// Fills `events` with what is ready, waiting up to `timeout` (for ever without one).
    ///
    /// A signal ends the wait early, with no events.
    ///
    /// # Errors
    /// Only for a broken descriptor: a bug of ours.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.ready = 0;
        let capacity = i32::try_from(events.buffer.len()).unwrap_or(i32::MAX);
        // SAFETY: `buffer` is valid for writes of `capacity` events during the call.
        let ready = check(unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.buffer.as_mut_ptr(),
                capacity,
                milliseconds(timeout),
            )
        });
        match ready {
            Ok(count) => events.ready = usize::try_from(count).unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn control(
        &self,
        operation: libc::c_int,
        source: &impl AsFd,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.0, u64: token };
        let fd = source.as_fd().as_raw_fd();
        // SAFETY: `event` lives across the call, and both descriptors are borrowed, hence open.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &raw mut event) })?;
        Ok(())
    }
}

/// Events of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest(u32);

impl Interest {
    pub const READ: Self = Self(libc::EPOLLIN as u32);
    pub const WRITE: Self = Self(libc::EPOLLOUT as u32);
}

/// One descriptor that has something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    pub token: u64,
    /// Something to read, an error among it: reading tells which.
    pub readable: bool,
    pub writable: bool,
}

/// Room for what one [`Poller::wait`] finds, reused from call to call.
pub struct Events {
    buffer: Vec<libc::epoll_event>,
    ready: usize,
}

impl Events {
    pub fn with_capacity(capacity: usize) -> Self {
        Self { buffer: vec![libc::epoll_event { events: 0, u64: 0 }; capacity.max(1)], ready: 0 }
    }

    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        const READABLE: u32 =
            (libc::EPOLLIN | libc::EPOLLERR | libc::EPOLLHUP | libc::EPOLLRDHUP) as u32;
        const WRITABLE: u32 = libc::EPOLLOUT as u32;
        self.buffer[..self.ready].iter().map(|event| Event {
            token: event.u64,
            readable: event.events & READABLE != 0,
            writable: event.events & WRITABLE != 0,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.ready == 0
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Wakes a thread that waits in [`Poller::wait`]; clones wake the same thread.
///
/// Wake-ups before the next [`Waker::drain`] are one wake-up.
#[derive(Debug, Clone)]
pub struct Waker {
    counter: Arc<File>,
}

impl Waker {
    /// # Errors
    /// Fails when the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers; the result is checked before use.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the kernel just gave us `fd`, and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { counter: Arc::new(File::from(fd)) })
    }

    /// Never blocks. A full counter (2^64 wake-ups unread) is a wake-up as well.
    pub fn wake(&self) {
        drop((&*self.counter).write(&1_u64.to_ne_bytes()));
    }

    /// Forgets the wake-ups so far; call it before looking at what they announced.
    pub fn drain(&self) {
        drop((&*self.counter).read(&mut [0; 8]));
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.counter.as_fd()
    }
}

/// Rounded up: rounding down would spin through the last millisecond before a deadline.
fn milliseconds(timeout: Option<Duration>) -> libc::c_int {
    let Some(timeout) = timeout else { return -1 };
    libc::c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_waker_ends_the_wait_of_another_thread() {
        let poller = Poller::new().unwrap();
        let waker = Waker::new().unwrap();
        poller.add(&waker, 7, Interest::READ).unwrap();
        let remote = waker.clone();
        let thread = std::thread::spawn(move || {
            remote.wake();
            remote.wake();
        });
        let mut events = Events::with_capacity(4);
        poller.wait(&mut events, Some(Duration::from_secs(10))).unwrap();
        thread.join().unwrap();
        let tokens: Vec<_> = events.iter().map(|event| event.token).collect();
        assert_eq!(tokens, [7]);

        waker.drain();
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty(), "two wake-ups are drained at once");
    }

    #[test]
    fn readiness_is_reported_by_token_until_it_is_read() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let poller = Poller::new().unwrap();
        poller.add(&ours, 1, Interest::READ).unwrap();
        theirs.send(b"x").unwrap();
        let mut events = Events::with_capacity(1);
        for _ in 0..2 {
            poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
            let event = events.iter().next().unwrap();
            assert_eq!((event.token, event.readable, event.writable), (1, true, false));
        }
        poller.remove(&ours).unwrap();
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty());
    }

    #[test]
    fn a_timeout_is_never_cut_short() {
        assert_eq!(milliseconds(Some(Duration::from_micros(1))), 1);
        assert_eq!(milliseconds(Some(Duration::from_micros(2001))), 3);
        assert_eq!(milliseconds(None), -1);
        let start = Instant::now();
        let mut events = Events::with_capacity(1);
        Poller::new().unwrap().wait(&mut events, Some(Duration::from_millis(20))).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));
    }
}
