//! HTTP/2 windows: the bound on bytes that were received and that no application has read yet.
//!
//! What a caller sends before anybody reads it lies in the proxy's memory, as much as the connection's
//! window lets it send. A wide window is what a long way needs, and one caller needs few of them: they are
//! places, shared out like others. Whoever finds none has what HTTP/2 gives every connection.

use std::sync::Arc;

use super::permits::{Caller, FairLimit, Permit};

/// 20 MB/s over a way of 50 ms.
const WIDE_BYTES: u32 = 1024 * 1024;
/// No connection's can be less (RFC 9113, section 6.9.2)
const NARROW_BYTES: u32 = 65_535;
/// Of each request there: so many connections hold less than that, since requests have places, too.
const NARROW_STREAM_BYTES: u32 = 16 * 1024;
/// For what an application answers. A caller has few connections to applications.
pub(crate) const ANSWER_BYTES: u32 = 2 * 1024 * 1024;
pub(crate) const ANSWER_STREAM_BYTES: u32 = 1024 * 1024;

/// The windows of all connections of callers.
#[derive(Clone, Debug)]
pub(crate) struct Windows(Arc<FairLimit>);

/// The window of one connection.
#[derive(Debug)]
pub(crate) struct Window(Option<Permit>);

impl Windows {
    /// So many may be wide at a time.
    pub(crate) fn new(wide: usize) -> Self {
        Self(FairLimit::new(wide))
    }

    pub(crate) fn open(&self, caller: Caller) -> Window {
        Window(self.0.take(caller))
    }
}

impl Window {
    /// Of all requests together.
    pub(crate) const fn bytes(&self) -> u32 {
        if self.0.is_some() { WIDE_BYTES } else { NARROW_BYTES }
    }

    /// Of each request.
    pub(crate) const fn stream_bytes(&self) -> u32 {
        if self.0.is_some() { WIDE_BYTES } else { NARROW_STREAM_BYTES }
    }
}
