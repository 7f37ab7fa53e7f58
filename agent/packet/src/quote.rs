//! ICMP errors that cross an address rewrite.
//!
//! An error quotes the packet that it is about, as that packet looked where it failed. A host that
//! sent the packet under another address must get the quote back under the address it used, or it
//! can't tell which socket is meant. So both headers are rewritten (RFC 5508 section 4.2):
//!
//! ```text
//!   outer IP ─ ICMP error ─ quoted IP ─ first bytes of the quoted transport
//!   `outer`                 `inner`, against the direction of travel
//! ```

use super::checksum::{delta, sum, update};
use super::{FlowKey, Headers, Rewrite, Transport};

const ICMP_HEADER: usize = 8;
const ICMP_CHECKSUM: usize = 2;
/// A rewrite touches at most this much of a transport header: up to TCP's checksum.
const TRANSPORT_REACH: usize = 20;

/// The packet that an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// The flow of the quoted packet, in its own direction: it went *from* where the error is
    /// going. Without ports if a later fragment is quoted.
    pub key: FlowKey,
    /// Offset of the quoted IP header in the ICMP packet.
    offset: usize,
    /// End of the quote: the packet's end, or the start of ICMP extensions (RFC 4884).
    end: usize,
    /// With offsets from the start of the quote.
    headers: Headers,
}

impl Quoted {
    /// The headers of the quoted packet; their offsets count from the start of the quote.
    pub const fn headers(&self) -> &Headers {
        &self.headers
    }
}

/// Finds the packet that an ICMP error quotes.
///
/// `None` if the packet isn't an ICMP error with a quote, is a fragment, or quotes something that
/// can't be read. Redirects and source quenches are left out: neither may steer an overlay
/// (RFC 6633).
pub fn quoted(packet: &[u8], headers: &Headers) -> Option<Quoted> {
    let Transport::IcmpError { kind, .. } = headers.transport else { return None };
    if headers.fragment.is_some() {
        return None;
    }
    let message = packet.get(headers.l4_offset..headers.total_length)?;
    let is_v4 = headers.key.source.is_v4();
    let length = quote_length(message, is_v4, kind)?;
    let quote = message.get(ICMP_HEADER..ICMP_HEADER + length)?;
    let inner = Headers::parse_quoted(quote).ok()?;
    let offset = headers.l4_offset + ICMP_HEADER;
    (inner.key.source.is_v4() == is_v4).then_some(Quoted {
        key: inner.key,
        offset,
        end: offset + length,
        headers: inner,
    })
}

/// Rewrites an ICMP error's own addresses by `outer` and the packet that it quotes by `inner`, and
/// fixes every checksum: the outer IP header's, ICMP's, the quoted IP header's, and the quoted
/// transport's if the quote reaches that far.
///
/// `outer` must have been made for `headers.key` and `inner` for `quoted.key`. For a flow that was
/// rewritten `from` → `to`, the error about it quotes `to`, and `inner` is
/// `Rewrite::between(&to, &from)`.
pub fn rewrite_icmp_error(
    packet: &mut [u8],
    headers: &Headers,
    quoted: &Quoted,
    outer: &Rewrite,
    inner: &Rewrite,
) {
    let reach = quoted.offset + quoted.headers.l4_offset + TRANSPORT_REACH;
    let touched = quoted.offset..reach.min(quoted.end);
    let Some(before) = packet.get(touched.clone()).map(sum) else { return };
    let Some(quote) = packet.get_mut(quoted.offset..quoted.end) else { return };
    inner.apply(quote, &quoted.headers);
    let Some(after) = packet.get(touched).map(sum) else { return };
    let Some(field) =
        packet.get_mut(headers.l4_offset + ICMP_CHECKSUM..).and_then(<[u8]>::first_chunk_mut::<2>)
    else {
        return;
    };
    *field = update(u16::from_be_bytes(*field), delta(before, after)).to_be_bytes();
    outer.apply(packet, headers);
}

/// Length of the quote; `None` for messages whose quote can't be translated.
fn quote_length(message: &[u8], is_v4: bool, kind: u8) -> Option<usize> {
    let rest = message.len().checked_sub(ICMP_HEADER)?;
    // RFC 4884 section 4: a length that is given says where extensions start.
    let given = match (is_v4, kind) {
        (true, 3 | 11 | 12) => usize::from(*message.get(5)?) * 4,
        (false, 1 | 3) => usize::from(*message.get(4)?) * 8,
        (false, 2 | 4) => 0,
        (true | false, _) => return None,
    };
    Some(if given == 0 { rest } else { given.min(rest) })
}
