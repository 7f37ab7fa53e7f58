//! Ciphers of bulk sessions.

/// Ciphers of bulk packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// For processors that have AES.
    Aes256Gcm,
    /// For others.
    ChaCha20Poly1305,
}

/// A set of ciphers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ciphers(u8);

impl Cipher {
    pub(crate) const ALL: [Self; 2] = [Self::Aes256Gcm, Self::ChaCha20Poly1305];

    pub(crate) const fn bit(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
        }
    }

    /// As people and settings write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }
}

impl Ciphers {
    /// No cipher: no bulk sessions.
    pub const NONE: Self = Self(0);

    /// The set of these.
    pub fn of(ciphers: &[Cipher]) -> Self {
        Self(ciphers.iter().fold(0, |set, cipher| set | cipher.bit()))
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The fastest that both have.
    pub(crate) fn best(self, other: Self) -> Option<Cipher> {
        Cipher::ALL.into_iter().find(|cipher| self.0 & other.0 & cipher.bit() != 0)
    }

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    pub(crate) const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The one that is meant, where there must be one.
    pub(crate) fn only(self) -> Option<Cipher> {
        Cipher::ALL.into_iter().find(|cipher| self.0 == cipher.bit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_cipher_of_both_is_taken() {
        let both = Ciphers::of(&Cipher::ALL);
        let slow = Ciphers::of(&[Cipher::ChaCha20Poly1305]);
        assert_eq!(both.best(both), Some(Cipher::Aes256Gcm));
        assert_eq!(both.best(slow), Some(Cipher::ChaCha20Poly1305));
        assert_eq!(both.best(Ciphers::NONE), None);
    }
}
