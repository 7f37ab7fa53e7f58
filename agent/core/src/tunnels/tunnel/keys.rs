//! Tunnel keys of this host.

use std::net::IpAddr;
use std::sync::Arc;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use isthmus_model::PublicKey;

use super::{Admission, COOKIES_ABOVE};

/// The host's keys, and what all tunnels share.
pub(crate) struct Keys {
    /// The mesh knows this host by the first. There is a second one only while the host's key changes.
    pub(super) own: Vec<OwnKey>,
}

pub(super) struct OwnKey {
    pub(super) private: x25519::StaticSecret,
    pub(super) public: x25519::PublicKey,
    pub(super) unlimited: Arc<RateLimiter>,
    pub(super) cookies: RateLimiter,
}

/// A packet that waits for a session.
pub(crate) struct Waiting {
    pub(crate) packet: Vec<u8>,
    pub(crate) dont_fragment: bool,
}

/// The public half of a tunnel key. Any 32 random bytes are a private key.
pub fn public_key(private: &[u8; 32]) -> PublicKey {
    let private = x25519::StaticSecret::from(*private);
    PublicKey(x25519::PublicKey::from(&private).to_bytes())
}

impl Keys {
    pub(crate) fn new(private: [u8; 32]) -> Self {
        Self { own: vec![OwnKey::new(private)] }
    }

    /// Both keys of a host whose key changes.
    pub(crate) fn both(one: [u8; 32], other: [u8; 32]) -> Self {
        Self { own: vec![OwnKey::new(one), OwnKey::new(other)] }
    }

    /// The mesh knows this host by `public`.
    pub(crate) fn known_by(&mut self, public: PublicKey) {
        self.own.sort_by_key(|own| own.public.to_bytes() != public.0);
    }

    /// Checks that a handshake message was made for us, and asks for cookies under load.
    pub(crate) fn admit(&self, source: IpAddr, datagram: &[u8], out: &mut [u8]) -> Admission {
        for own in &self.own {
            match own.admit(source, datagram, out) {
                Admission::Refuse => {}
                admitted @ (Admission::Pass | Admission::Cookie(_)) => return admitted,
            }
        }
        Admission::Refuse
    }

    /// Forgets the load of the last second.
    pub(crate) fn reset_load(&self) {
        self.own.iter().for_each(|own| own.cookies.reset_count());
    }

    /// Who claims to send an initiation. That it's true shows only when the tunnel opens it.
    pub(crate) fn initiator(&self, datagram: &[u8]) -> Option<PublicKey> {
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
            return None;
        };
        // Only the one that it was made for opens it.
        self.own.iter().find_map(|own| {
            let half = parse_handshake_anon(&own.private, &own.public, &initiation).ok()?;
            Some(PublicKey(half.peer_static_public))
        })
    }
}

impl OwnKey {
    pub(super) fn new(private: [u8; 32]) -> Self {
        let private = x25519::StaticSecret::from(private);
        let public = x25519::PublicKey::from(&private);
        Self {
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            cookies: RateLimiter::new(&public, COOKIES_ABOVE),
            private,
            public,
        }
    }

    pub(super) fn admit(&self, source: IpAddr, datagram: &[u8], out: &mut [u8]) -> Admission {
        match self.cookies.verify_packet(Some(source), datagram, out) {
            Ok(_) => Admission::Pass,
            Err(TunnResult::WriteToNetwork(reply)) => Admission::Cookie(reply.len()),
            Err(
                TunnResult::Done
                | TunnResult::Err(_)
                | TunnResult::WriteToTunnelV4(..)
                | TunnResult::WriteToTunnelV6(..),
            ) => Admission::Refuse,
        }
    }
}
