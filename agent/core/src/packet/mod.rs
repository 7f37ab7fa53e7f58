//! IP packets as byte slices: read them, rewrite them, answer them.
//!
//! Everything here is a pure function of its arguments. Nothing allocates while packets flow,
//! nothing reads a clock, and nothing panics, whatever the bytes: a packet that can't be
//! understood is an error with a reason that the node counts, never a guess.
//!
//! A packet's way through the module:
//!
//! 1. [`Headers::parse`] reads the 5-tuple ([`FlowKey`]) and where things are. It is strict:
//!    what it accepts has consistent lengths, no source route, and no way to hide its ports from
//!    the policy behind extension headers or fragments.
//! 2. The flow table answers with a verdict and a [`Rewrite`], whose checksum deltas were
//!    computed once per flow; [`Rewrite::apply`] changes addresses and ports in place.
//! 3. What can't be forwarded is answered by [`icmp::error`] or [`reset::tcp_reset`], built into
//!    the caller's buffer. ICMP errors about rewritten flows go through [`quote`].
//!
//! Checksums are updated incrementally (RFC 1624), so that a packet that was corrupt before a
//! rewrite is still corrupt after it, and so that super-packets with a partial checksum can be
//! rewritten before the kernel or the splitter completes them.

mod address;
pub mod checksum;
mod parse;
mod rewrite;

pub use address::{Address, FlowKey};
pub use parse::{Fragment, Headers, ParseError, TcpFlags, Transport};
pub use rewrite::{Rewrite, RewriteError};

/// IP protocol numbers that this module knows (IANA "Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
}
