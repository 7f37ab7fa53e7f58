//! Join tokens: what a new host needs to know to become a member, in one line of text.
//!
//! ```text
//!  isthmus1.<base64url of: id 8 | secret 32 | BLAKE3 of the CA's certificate (DER) 32 | addresses>
//! ```
//!
//! Addresses are `host:port`, separated by commas. The controller keeps only the secret's hash.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

const PREFIX: &str = "isthmus1.";
const ADDRESSES_AT: usize = 8 + 32 + 32;
const MAX_LENGTH: usize = 1_024;

/// A join token. It is a secret: print it only to the person who asked for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Names the token in lists and logs.
    pub id: TokenId,
    /// Proves that the bearer was given the token.
    pub secret: Zeroizing<[u8; 32]>,
    /// The BLAKE3 hash of the CA's certificate in DER.
    pub ca_hash: [u8; 32],
    /// Where the controller listens, as `host:port`; at least one.
    pub controllers: Vec<String>,
}

/// Names a token without being a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub [u8; 8]);

/// Why a text is not a [`Token`]. Never quotes the text: it may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It begins otherwise.
    #[error(
        "a join token begins with \"isthmus1.\"; copy the whole line that `agentctl token create` printed"
    )]
    Prefix,
    /// It is cut short, too long, or has characters that no token has.
    #[error("the join token is damaged; copy the whole line that `agentctl token create` printed")]
    Damaged,
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for TokenId {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        // Numbers may have a sign where Rust reads them: ids may not.
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(TokenError::Damaged);
        }
        let mut id = [0; 8];
        for (byte, at) in id.iter_mut().zip((0..16).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| TokenError::Damaged)?;
        }
        Ok(Self(id))
    }
}

/// Shows the id only.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Token {
    /// The token as the line that people copy.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(ADDRESSES_AT + 64));
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&*self.secret);
        bytes.extend_from_slice(&self.ca_hash);
        bytes.extend_from_slice(self.controllers.join(",").as_bytes());
        Zeroizing::new(format!("{PREFIX}{}", *Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes))))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        if body.len() > MAX_LENGTH {
            return Err(TokenError::Damaged);
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?);
        let (id, rest) = bytes.split_first_chunk::<8>().ok_or(TokenError::Damaged)?;
        let (secret, rest) = rest.split_first_chunk::<32>().ok_or(TokenError::Damaged)?;
        let (ca_hash, rest) = rest.split_first_chunk::<32>().ok_or(TokenError::Damaged)?;
        let addresses = std::str::from_utf8(rest).map_err(|_| TokenError::Damaged)?;
        let controllers: Vec<String> = addresses.split(',').map(str::to_owned).collect();
        if !controllers.iter().all(|address| is_host_and_port(address)) {
            return Err(TokenError::Damaged);
        }
        Ok(Self {
            id: TokenId(*id),
            secret: Zeroizing::new(*secret),
            ca_hash: *ca_hash,
            controllers,
        })
    }
}

fn is_host_and_port(address: &str) -> bool {
    let visible = address.bytes().all(|byte| byte.is_ascii_graphic());
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let unsigned = port.bytes().all(|byte| byte.is_ascii_digit());
    visible && !host.is_empty() && unsigned && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            id: TokenId([1, 2, 3, 4, 5, 6, 7, 8]),
            secret: Zeroizing::new([9; 32]),
            ca_hash: [7; 32],
            controllers: vec!["10.0.0.1:7443".into(), "[fd00::1]:7443".into()],
        }
    }

    #[test]
    fn survives_being_copied() {
        let line = token().encode();
        assert!(format!("  {}\n", *line).parse::<Token>().unwrap() == token());
        assert_eq!(token().id.to_string().parse(), Ok(token().id));
    }

    #[test]
    fn a_cut_or_foreign_text_is_refused() {
        let line = token().encode();
        assert_eq!(line[..60].parse::<Token>().err(), Some(TokenError::Damaged));
        assert_eq!("eyJhbGciOi".parse::<Token>().err(), Some(TokenError::Prefix));
        let mut homeless = token();
        homeless.controllers = vec![];
        assert_eq!(homeless.encode().parse::<Token>().err(), Some(TokenError::Damaged));
    }

    #[test]
    fn numbers_have_no_signs() {
        assert_eq!("+1".repeat(8).parse::<TokenId>(), Err(TokenError::Damaged));
        let mut signed = token();
        signed.controllers = vec!["10.0.0.1:+7443".into()];
        assert_eq!(signed.encode().parse::<Token>().err(), Some(TokenError::Damaged));
    }
}
