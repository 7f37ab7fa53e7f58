//! Control messages between agents: UDP inside the tunnel, between the hosts' own IPv6 addresses,
//! port 51820 to port 51820. It never reaches the kernel, and the kernel can't send it.
//!
//! ```text
//!   0                   1                   2                   3
//!   0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//!  +---------------+---------------+-------------------------------+
//!  |  version = 1  |     kind      |             size              |
//!  +---------------+---------------+-------------------------------+
//!  |          identifier           |           sequence            |
//!  +-------------------------------+-------------------------------+
//!  |  zeros, up to the probe's size ...
//!  +-------------------------------
//!
//!  kind 1  path probe      size: of the outer IP packet, which may not be fragmented
//!       2  path probe ack  size, identifier: as in the probe
//!       3  echo request
//!       4  echo reply      identifier, sequence: as in the request
//!       5, 6, 7            bulk sessions: see `bulk/message.rs`
//! ```

use isthmus_packet::{Address, FlowKey, Headers, Transport, protocol, udp_datagram};

/// As the tunnels' own port: nobody else on a host listens there.
pub(crate) const PORT: u16 = 51820;

const VERSION: u8 = 1;
const LENGTH: usize = 8;
/// IPv6 and UDP headers.
const HEADERS: usize = 48;
/// No probe is larger.
const MAX_PAYLOAD: usize = 9000;
/// A buffer for any message.
pub(crate) const MAX_PACKET: usize = HEADERS + MAX_PAYLOAD;

/// A message between agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    Probe { identifier: u16, size: u16 },
    ProbeAck { identifier: u16, size: u16 },
    EchoRequest { identifier: u16, sequence: u16 },
    EchoReply { identifier: u16, sequence: u16 },
}

impl Control {
    /// Whether this is how agents speak, so that it isn't for the kernel.
    pub(crate) fn is_control(headers: &Headers) -> bool {
        headers.transport == Transport::Udp
            && headers.key.destination_port == PORT
            && !headers.key.destination.is_v4()
    }

    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let [version, kind, rest @ ..] = payload.first_chunk::<LENGTH>()?;
        let word = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
        let (size, identifier, sequence) = (word(0), word(2), word(4));
        match (*version, kind) {
            (VERSION, 1) => Some(Self::Probe { identifier, size }),
            (VERSION, 2) => Some(Self::ProbeAck { identifier, size }),
            (VERSION, 3) => Some(Self::EchoRequest { identifier, sequence }),
            (VERSION, 4) => Some(Self::EchoReply { identifier, sequence }),
            _ => None,
        }
    }

    /// Writes the message as an IP packet of at least `length` bytes, and returns its length.
    pub(crate) fn write(
        self,
        from: Address,
        to: Address,
        length: usize,
        out: &mut [u8],
    ) -> Option<usize> {
        let (kind, size, identifier, sequence) = match self {
            Self::Probe { identifier, size } => (1, size, identifier, 0),
            Self::ProbeAck { identifier, size } => (2, size, identifier, 0),
            Self::EchoRequest { identifier, sequence } => (3, 0, identifier, sequence),
            Self::EchoReply { identifier, sequence } => (4, 0, identifier, sequence),
        };
        let mut payload = [0; MAX_PAYLOAD];
        payload[..2].copy_from_slice(&[VERSION, kind]);
        payload[2..4].copy_from_slice(&size.to_be_bytes());
        payload[4..6].copy_from_slice(&identifier.to_be_bytes());
        payload[6..8].copy_from_slice(&sequence.to_be_bytes());
        packet(from, to, payload.get(..length.saturating_sub(HEADERS).max(LENGTH))?, out)
    }
}

/// Writes a message as an IP packet, and returns its length.
pub(crate) fn packet(from: Address, to: Address, payload: &[u8], out: &mut [u8]) -> Option<usize> {
    let key = FlowKey {
        source: from,
        destination: to,
        source_port: PORT,
        destination_port: PORT,
        protocol: protocol::UDP,
    };
    udp_datagram(&key, payload, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_round_trip() {
        let (from, to) = (Address::v6([0xfd; 16]), Address::v6([0xfe; 16]));
        let all = [
            Control::Probe { identifier: 7, size: 1500 },
            Control::ProbeAck { identifier: 7, size: 1280 },
            Control::EchoRequest { identifier: 1, sequence: 2 },
            Control::EchoReply { identifier: 3, sequence: 4 },
        ];
        for control in all {
            let mut out = [0; 2048];
            let length = control.write(from, to, 1200, &mut out).unwrap();
            assert_eq!(length, 1200);
            let headers = Headers::parse(&out[..length]).unwrap();
            assert!(Control::is_control(&headers));
            assert_eq!(Control::read(headers.payload(&out)), Some(control));
        }
    }

    #[test]
    fn what_is_short_or_of_another_version_is_not_understood() {
        assert_eq!(Control::read(&[1, 3, 0, 0, 0, 0, 0]), None);
        assert_eq!(Control::read(&[2, 3, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Control::read(&[1, 9, 0, 0, 0, 0, 0, 0]), None);
    }
}
