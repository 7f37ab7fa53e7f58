//! Bulk packets, and the keys that seal them.
//!
//! ```text
//!   0                   1                   2                   3
//!   0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//!  +---------------+---------------+---------------+---------------+
//!  |  type = 0x40  | receiver lane |  sender lane  |     flags     |
//!  +---------------+---------------+---------------+---------------+
//!  |                  session, the receiver's (LE)                 |
//!  +---------------------------------------------------------------+
//!  |                         counter (LE)                          |
//!  |                                                               |
//!  +---------------------------------------------------------------+
//!  |  the packet, padded to 16 bytes where the path has room, and  |
//!  |  a tag of 16 bytes ...
//! ```
//!
//! As WireGuard's data message, but for the type, the lanes and the flags. All 16 bytes are
//! associated data. Flags: 1, the transport's checksum holds the sum of the pseudo-header only: the
//! sender's kernel left it to the device, and the tag says more than it would.
//! The nonce is receiver lane, sender lane, two zeros, and the counter as it stands: each pair of
//! lanes counts for itself.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use isthmus_model::HostId;
use zeroize::Zeroizing;

use crate::types::Cipher;

pub(crate) const HEADER: usize = 16;
pub(crate) const TAG: usize = 16;
/// The first byte of a bulk packet; the second is the receiver's lane.
pub const TYPE: u8 = 0x40;
const PARTIAL: u8 = 1;
const SALT: &[u8] = b"isthmus bulk session v1";
pub(crate) const SECRET: usize = 32;

/// The header of a bulk packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) receiver_lane: u8,
    pub(crate) sender_lane: u8,
    /// Whether the packet's checksum is to be completed.
    pub(crate) partial: bool,
    pub(crate) session: u32,
    pub(crate) counter: u64,
}

impl Header {
    /// None for what isn't a bulk packet with room for a tag.
    #[inline]
    pub(crate) fn read(datagram: &[u8]) -> Option<Self> {
        let header = datagram.first_chunk::<HEADER>()?;
        let is_bulk =
            header[0] == TYPE && header[3] & !PARTIAL == 0 && datagram.len() >= HEADER + TAG;
        is_bulk.then(|| Self {
            receiver_lane: header[1],
            sender_lane: header[2],
            partial: header[3] & PARTIAL != 0,
            session: u32::from_le_bytes([header[4], header[5], header[6], header[7]]),
            counter: u64::from_le_bytes([
                header[8], header[9], header[10], header[11], header[12], header[13], header[14],
                header[15],
            ]),
        })
    }

    /// The receiver's lane and the sender's.
    pub(crate) const fn lanes(self) -> (u8, u8) {
        (self.receiver_lane, self.sender_lane)
    }

    fn bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let flags = if self.partial { PARTIAL } else { 0 };
        bytes[..4].copy_from_slice(&[TYPE, self.receiver_lane, self.sender_lane, flags]);
        bytes[4..8].copy_from_slice(&self.session.to_le_bytes());
        bytes[8..].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }

    fn nonce(self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..2].copy_from_slice(&[self.receiver_lane, self.sender_lane]);
        nonce[4..].copy_from_slice(&self.counter.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The key of one direction of a bulk session. aws-lc erases it when it's dropped.
pub(crate) struct Key {
    pub(crate) cipher: Cipher,
    /// Shows that both ends have the same key, and tells nothing of it.
    pub(crate) proof: Proof,
    key: LessSafeKey,
}

pub(crate) type Proof = [u8; 16];

/// Purpose of a key, so that no two purposes ever share one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purpose {
    pub(crate) cipher: Cipher,
    pub(crate) session: u32,
    pub(crate) sender: HostId,
    pub(crate) receiver: HostId,
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Key {
    /// HKDF-SHA-256 (RFC 5869) of the ML-KEM secret and the sender's random bytes. None if the
    /// library fails.
    pub(crate) fn derive(shared: &[u8], random: &[u8; SECRET], purpose: Purpose) -> Option<Self> {
        let mut material = Zeroizing::new(Vec::with_capacity(shared.len() + SECRET));
        material.extend_from_slice(shared);
        material.extend_from_slice(random);
        let mut info = [0; 13];
        info[0] = purpose.cipher.bit();
        info[1..5].copy_from_slice(&purpose.session.to_be_bytes());
        info[5..9].copy_from_slice(&purpose.sender.0.to_be_bytes());
        info[9..].copy_from_slice(&purpose.receiver.0.to_be_bytes());
        let extracted = Salt::new(HKDF_SHA256, SALT).extract(&material);
        let expand = |label: &[u8], out: &mut [u8]| {
            let info = [&info, label];
            let expanded = extracted.expand(&info, Length(out.len())).ok()?;
            expanded.fill(out).ok()
        };
        let (mut bytes, mut proof) = (Zeroizing::new([0; SECRET]), Proof::default());
        expand(b"", bytes.as_mut())?;
        expand(b"proof", &mut proof)?;
        let algorithm = match purpose.cipher {
            Cipher::Aes256Gcm => &AES_256_GCM,
            Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, bytes.as_ref()).ok()?);
        Some(Self { cipher: purpose.cipher, proof, key })
    }

    /// Seals a datagram in place: between header and tag lies the packet. False if there is no room.
    #[inline]
    pub(crate) fn seal(&self, header: Header, datagram: &mut [u8]) -> bool {
        let Some((head, rest)) = datagram.split_first_chunk_mut::<HEADER>() else { return false };
        let Some((packet, tag)) = rest.split_last_chunk_mut::<TAG>() else { return false };
        *head = header.bytes();
        match self.key.seal_in_place_separate_tag(header.nonce(), Aad::from(*head), packet) {
            Ok(sealed) => {
                tag.copy_from_slice(sealed.as_ref());
                true
            }
            Err(_) => false,
        }
    }

    /// Opens a datagram in place, and returns the packet's length; it begins after the header. None
    /// if it isn't authentic.
    #[inline]
    pub(crate) fn open(&self, header: Header, datagram: &mut [u8]) -> Option<usize> {
        let (head, sealed) = datagram.split_first_chunk_mut::<HEADER>()?;
        let packet = self.key.open_in_place(header.nonce(), Aad::from(*head), sealed).ok()?;
        Some(packet.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{Message, Ready};
    use super::*;

    const PURPOSE: Purpose = Purpose {
        cipher: Cipher::Aes256Gcm,
        session: 0x0102_0304,
        sender: HostId(7),
        receiver: HostId(9),
    };
    const HEADER_7: Header = Header {
        receiver_lane: 1,
        sender_lane: 2,
        partial: false,
        session: 0x0102_0304,
        counter: 7,
    };

    fn key(purpose: Purpose) -> Key {
        Key::derive(&[0x11; 32], &[0x22; 32], purpose).unwrap()
    }

    fn sealed(key: &Key, packet: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0; HEADER];
        datagram.extend_from_slice(packet);
        datagram.extend_from_slice(&[0; TAG]);
        assert!(key.seal(HEADER_7, &mut datagram));
        datagram
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The vectors of the specification.
    #[test]
    fn the_format_is_what_is_written_down() {
        let written = include_str!("../../../../docs/bulk-protocol.md");
        let has = |what: &str, bytes: &[u8]| {
            let line = format!("{what} {}", hex(bytes));
            let mut lines = written.lines().map(|it| it.split_whitespace().collect::<Vec<_>>());
            lines.any(|words| words.join(" ") == line)
        };
        for cipher in Cipher::ALL {
            let key = key(Purpose { cipher, ..PURPOSE });
            let datagram = sealed(&key, b"0123456789abcdef");
            assert!(has("datagram", &datagram), "{}: {}", cipher.name(), hex(&datagram));
            assert!(has("proof", &key.proof), "{}: {}", cipher.name(), hex(&key.proof));
        }
        let ready = Ready::new(PURPOSE.session, key(PURPOSE).proof);
        Message::Ready(&ready).bytes(|bytes| assert!(has("ready", bytes), "{}", hex(bytes)));
    }

    #[test]
    fn what_is_sealed_opens_once_and_nothing_else_does() {
        for cipher in Cipher::ALL {
            let key = key(Purpose { cipher, ..PURPOSE });
            let datagram = sealed(&key, b"a packet");
            let header = Header::read(&datagram).unwrap();
            assert_eq!(header, HEADER_7);
            let mut copy = datagram.clone();
            assert_eq!(key.open(header, &mut copy), Some(8));
            assert_eq!(&copy[HEADER..HEADER + 8], b"a packet");
            for at in 0..datagram.len() {
                let mut bad = datagram.clone();
                bad[at] ^= 1;
                let opened = Header::read(&bad).and_then(|header| key.open(header, &mut bad));
                assert_eq!(opened, None, "byte {at} was changed");
            }
        }
    }

    #[test]
    fn each_purpose_has_a_key_of_its_own() {
        let others = [
            Purpose { session: 1, ..PURPOSE },
            Purpose { sender: HostId(9), receiver: HostId(7), ..PURPOSE },
            Purpose { cipher: Cipher::ChaCha20Poly1305, ..PURPOSE },
        ];
        let datagram = sealed(&key(PURPOSE), b"a packet");
        for other in others {
            assert_eq!(key(other).open(HEADER_7, &mut datagram.clone()), None, "{other:?}");
        }
        let other = Key::derive(&[0x11; 32], &[0x23; 32], PURPOSE).unwrap();
        assert_eq!(other.open(HEADER_7, &mut datagram.clone()), None);
        let other = Key::derive(&[0x12; 32], &[0x22; 32], PURPOSE).unwrap();
        assert_eq!(other.open(HEADER_7, &mut datagram.clone()), None);
    }

    #[test]
    fn flags_are_sealed_with_the_rest_and_unknown_ones_refused() {
        let header = Header { partial: true, ..HEADER_7 };
        let mut bytes = [0; HEADER + TAG];
        assert!(key(PURPOSE).seal(header, &mut bytes));
        assert_eq!(Header::read(&bytes), Some(header));
        bytes[3] = 2;
        assert_eq!(Header::read(&bytes), None);
    }

    #[test]
    fn what_is_too_short_or_of_another_type_is_no_bulk_packet() {
        assert_eq!(Header::read(&[TYPE; 31]), None);
        assert_eq!(Header::read(&[4; 64]), None);
    }
}
