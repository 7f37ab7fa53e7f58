//! One pair of keys' sessions with a peer.

use std::net::IpAddr;
use std::sync::Arc;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use isthmus_model::PublicKey;

use super::{Line, Message, Opened, OwnKey};

impl Line {
    pub(super) fn new(own: &OwnKey, theirs: PublicKey, index: u32) -> Self {
        let tunn = Tunn::new(
            own.private.clone(),
            x25519::PublicKey::from(theirs.0),
            None,
            None,
            index,
            Some(Arc::clone(&own.unlimited)),
        );
        Self {
            index,
            ours: PublicKey(own.public.to_bytes()),
            theirs,
            tunn: Box::new(tunn),
            session: false,
            unconfirmed: false,
        }
    }

    pub(super) fn open(
        &mut self,
        source: IpAddr,
        message: &Message,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Opened {
        match self.tunn.decapsulate(Some(source), datagram, out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Opened::Packet(packet.len())
            }
            TunnResult::WriteToNetwork(reply) => match message {
                Message::Initiation => Opened::Answer(reply.len()),
                Message::Response { .. } | Message::Cookie { .. } | Message::Data { .. } => {
                    Opened::Completed(reply.len())
                }
            },
            TunnResult::Done => match message {
                Message::Cookie { .. } => Opened::Cookie,
                Message::Initiation | Message::Response { .. } | Message::Data { .. } => {
                    Opened::Keepalive
                }
            },
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => Opened::Outdated,
            TunnResult::Err(_) => Opened::Refused,
        }
    }

    /// Lets time pass. Returns the length of what boringtun wants to send, and whether that is an initiation.
    pub(super) fn tick(&mut self, out: &mut [u8]) -> Option<(usize, bool)> {
        let sent = match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(datagram) => {
                let is_initiation = matches!(Message::of(datagram), Some(Message::Initiation));
                Some((datagram.len(), is_initiation))
            }
            // Expired for good, as far as boringtun is concerned: `initiate` revives it.
            TunnResult::Err(WireGuardError::ConnectionExpired) => None,
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        };
        self.refresh();
        sent
    }

    pub(super) fn write_initiation(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.tunn.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    pub(super) fn refresh(&mut self) {
        self.session = self.tunn.time_since_last_handshake().is_some();
    }
}
