//! HTTP/1, read strictly and written plainly.
//!
//! hyper's HTTP/1 costs more instructions than all else that the proxy does to a request, and holds
//! buffers for connections that nobody uses. This reads heads by `httparse`, gives the same
//! `http` types that hyper does, so that nothing else need know the difference, and keeps names as
//! their senders spell them. HTTP/2 goes by hyper.
//!
//! What two programs could read in two ways is refused, not mended ([`head`], [`decode`]): both a
//! length and a coding, two lengths, codings other than `chunked`, lines that end in a bare LF,
//! folded lines, spaces before a colon. What is passed on is written anew from what was understood.
//!
//! A connection without a request under way has no buffer: what arrives is read into one of the
//! thread's, and copied to as many bytes as it needs.

mod body;
pub mod client;
mod date;
mod decode;
mod encode;
mod head;
mod link;
#[cfg(feature = "probe")]
pub mod probe;
mod reader;
mod send;
pub mod server;

use std::io;

use bytes::Bytes;

pub use body::{Body, Keep};
pub use link::{Conn, Guard, Raw};

/// Why a message can't be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the connection ended within a message")]
    Truncated,
    #[error("no proper HTTP/1: {0}")]
    Malformed(&'static str),
    #[error("a body of another length than was announced")]
    WrongLength,
}

/// A body that may know the head that it came with, whose spelling of names is kept.
pub trait Spelled {
    fn spelled(&self) -> Option<&Bytes>;
}
