//! IP packets as byte slices: read them, rewrite them, answer them.
//!
//! Everything here is a pure function of its arguments. Nothing allocates while packets flow,
//! nothing reads a clock, and nothing panics, whatever the bytes: a packet that can't be
//! understood is an error with a reason that its user counts, never a guess. Nothing of ours is
//! used here: neither the mesh's model nor its policy is known.
//!
//! A packet's way through the crate:
//!
//! 1. [`Headers::parse`] reads the 5-tuple ([`FlowKey`]) and where things are. It is strict:
//!    what it accepts has consistent lengths, no source route, and no way to hide its ports from
//!    the policy behind extension headers or fragments.
//! 2. The flow table answers with a verdict and a [`Rewrite`], whose checksum deltas were
//!    computed once per flow; [`Rewrite::apply`] changes addresses and ports in place.
//! 3. What can't be forwarded is answered by [`icmp_error`] or [`tcp_reset`], built into the
//!    caller's buffer. ICMP errors about rewritten flows go through [`quoted`] and
//!    [`rewrite_icmp_error`]; fragments find their flow's decision in a [`FragmentTable`].
//!
//! Checksums are updated incrementally (RFC 1624), so that a packet that was corrupt before a
//! rewrite is still corrupt after it, and so that super-packets with a partial checksum can be
//! rewritten before the kernel or the splitter completes them.
//!
//! Super-packets, which stand for many, are read by [`Offload`], split by [`SuperPacket`], and made
//! again of what follows each other by [`Run`].

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod address;
mod build;
pub mod checksum;
mod coalesce;
mod fragment;
mod headers;
mod hops;
mod icmp;
mod mss;
mod offload;
mod parse;
mod quote;
mod reset;
mod rewrite;
mod segment;
mod split;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use address::{Address, FlowKey};
pub use build::{Echo, echo, echo_reply, udp_datagram};
pub use coalesce::{MAX_SEGMENTS, Run, RunHeader};
pub use fragment::{FragmentKey, FragmentLimits, FragmentTable};
pub use headers::{Fragment, Headers, ParseError, TcpFlags, Transport};
pub use hops::decrement_hops;
pub use icmp::{REPLY_BUFFER, Reason, icmp_error};
pub use mss::{clamp_mss, clamp_mss_partial};
pub use offload::{BadOffload, Offload, VNET_HEADER, complete_checksum};
pub use quote::{Quoted, quoted, rewrite_icmp_error};
pub use reset::tcp_reset;
pub use rewrite::{Rewrite, RewriteError};
pub use segment::SuperPacket;
pub use split::{SplitError, fragment_ipv4};

/// IP protocol numbers that this crate knows (IANA "Protocol Numbers").
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
