//! Messages that set up bulk sessions.
//!
//! ```text
//!   0                   1                   2                   3
//!   0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//!  +---------------+---------------+---------------+---------------+
//!  |  version = 1  |     kind      |    ciphers    |     lanes     |
//!  +---------------+---------------+---------------+---------------+
//!  |                           session                             |
//!  +---------------------------------------------------------------+
//!
//!  kind 5  Offer   ciphers: a set; then the sender's life (8), its ML-KEM-768 share (1,184)
//!       6  Answer  ciphers: the one taken; then random bytes (32), the sealed secret (1,088)
//!       7  Ready   ciphers: 0; then what proves that the key is the same (16)
//! ```
//!
//! Ciphers: 1 AES-256-GCM, 2 ChaCha20-Poly1305. Lanes: how many the receiver has, in an offer; 0
//! elsewhere, and from a receiver that has one. Numbers are in network order.

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::codec::{Proof, SECRET};
use super::{LANES, Offering};
use crate::types::{Cipher, Ciphers};

const VERSION: u8 = 1;
const OFFER: u8 = 5;
const ANSWER: u8 = 6;
const READY: u8 = 7;

const HEAD: usize = 8;
const SHARE: usize = 1_184;
const SEALED: usize = 1_088;
const OFFER_LENGTH: usize = HEAD + 8 + SHARE;
const ANSWER_LENGTH: usize = HEAD + SECRET + SEALED;
const READY_LENGTH: usize = HEAD + size_of::<Proof>();

/// Message to send.
#[derive(Clone, Copy)]
pub(crate) enum Message<'a> {
    Offer(&'a Offer),
    Answer(&'a Answer),
    Ready(&'a Ready),
}

/// Message received.
pub(crate) enum Heard {
    Offer(Box<Offer>),
    Answer(Box<Answer>),
    Ready(Ready),
}

/// "Send to me like this."
#[derive(Clone)]
pub(crate) struct Offer([u8; OFFER_LENGTH]);

/// "I will."
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Answer([u8; ANSWER_LENGTH]);

/// "I can open it."
#[derive(Clone, Copy)]
pub(crate) struct Ready([u8; READY_LENGTH]);

impl Ready {
    pub(crate) fn new(session: u32, proof: Proof) -> Self {
        let mut bytes = [0; READY_LENGTH];
        bytes[..HEAD].copy_from_slice(&head(READY, 0, session));
        bytes[HEAD..].copy_from_slice(&proof);
        Self(bytes)
    }

    pub(crate) fn session(&self) -> u32 {
        session(&self.0)
    }

    pub(crate) fn proves(&self, proof: Proof) -> bool {
        self.0.ends_with(&proof)
    }
}

impl Heard {
    /// None for what isn't one of these, or isn't whole.
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let (head, _) = payload.split_first_chunk::<HEAD>()?;
        if head[0] != VERSION {
            return None;
        }
        match head[1] {
            OFFER => Some(Self::Offer(Box::new(Offer(*payload.first_chunk()?)))),
            ANSWER => Some(Self::Answer(Box::new(Answer(*payload.first_chunk()?)))),
            READY => Some(Self::Ready(Ready(*payload.first_chunk()?))),
            _ => None,
        }
    }
}

impl Message<'_> {
    /// The payload.
    pub(crate) fn bytes<R>(self, take: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::Offer(offer) => take(&offer.0),
            Self::Answer(answer) => take(&answer.0),
            Self::Ready(ready) => take(&ready.0),
        }
    }
}

impl Offer {
    pub(crate) fn new(session: u32, by: Offering, share: &[u8]) -> Option<Self> {
        let mut bytes = [0; OFFER_LENGTH];
        bytes[..HEAD].copy_from_slice(&head(OFFER, by.ciphers.bits(), session));
        bytes[3] = by.lanes;
        bytes[HEAD..HEAD + 8].copy_from_slice(&by.life.to_be_bytes());
        bytes[HEAD + 8..].copy_from_slice(share.first_chunk::<SHARE>()?);
        Some(Self(bytes))
    }

    pub(crate) fn session(&self) -> u32 {
        session(&self.0)
    }

    /// The number of the sender's life: another after each start.
    pub(crate) fn life(&self) -> u64 {
        let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    pub(crate) const fn ciphers(&self) -> Ciphers {
        Ciphers::from_bits(self.0[2])
    }

    pub(crate) fn lanes(&self) -> u8 {
        self.0[3].clamp(1, LANES)
    }

    pub(crate) fn share(&self) -> &[u8] {
        self.0.get(HEAD + 8..).unwrap_or_default()
    }
}

impl Answer {
    pub(crate) fn new(
        session: u32,
        cipher: Cipher,
        random: &[u8; SECRET],
        sealed: &[u8],
    ) -> Option<Self> {
        let mut bytes = [0; ANSWER_LENGTH];
        bytes[..HEAD].copy_from_slice(&head(ANSWER, Ciphers::of(&[cipher]).bits(), session));
        bytes[HEAD..HEAD + SECRET].copy_from_slice(random);
        bytes[HEAD + SECRET..].copy_from_slice(sealed.first_chunk::<SEALED>()?);
        Some(Self(bytes))
    }

    pub(crate) fn session(&self) -> u32 {
        session(&self.0)
    }

    pub(crate) fn cipher(&self) -> Option<Cipher> {
        Ciphers::from_bits(self.0[2]).only()
    }

    pub(crate) fn random(&self) -> Option<&[u8; SECRET]> {
        self.0.get(HEAD..)?.first_chunk()
    }

    pub(crate) fn sealed(&self) -> &[u8] {
        self.0.get(HEAD + SECRET..).unwrap_or_default()
    }
}

fn head(kind: u8, ciphers: u8, session: u32) -> [u8; HEAD] {
    let [a, b, c, d] = session.to_be_bytes();
    [VERSION, kind, ciphers, 0, a, b, c, d]
}

fn session(bytes: &[u8]) -> u32 {
    bytes.get(4..).and_then(<[u8]>::first_chunk).map_or(0, |session| u32::from_be_bytes(*session))
}
