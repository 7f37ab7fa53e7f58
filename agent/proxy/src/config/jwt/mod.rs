//! JSON Web Tokens: which a request has, and whether they are true (RFC 7515, 7519).
//!
//! What is believed is pinned from our side: the algorithm by the kind of the key that the set holds,
//! never by the token alone. There are no secrets in a key set (`oct` keys are left out), so nobody
//! can sign with a public key as if it were one, and `none` is no algorithm. aws-lc verifies: it is
//! here anyway for TLS. The crate `jsonwebtoken` would do the parsing only, knows nothing of `crit`,
//! and takes the algorithm from its caller.

mod fetch;
mod keys;
mod ring;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::COOKIE;
use isthmus_model::{JwtProvider, TokenPlace};
use isthmus_policy::Token;
use serde::Deserialize;
use serde_json::{Map, Value};

use keys::{Algorithm, KeySet};
pub use ring::KeyFailure;
pub(crate) use ring::KeyRing;

/// The longest token: more doesn't fit into common servers' heads either.
const MAX_BYTES: usize = 16 * 1024;

/// Why a token isn't believed. For the access log: its sender learns only that it isn't.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("there are several tokens where one is expected")]
    Several,
    #[error("it has more than {MAX_BYTES} bytes")]
    TooLong,
    #[error("it isn't three parts of base64url")]
    Malformed,
    #[error("its header isn't the JSON that it should be: {0}")]
    Header(String),
    #[error("its claims aren't a JSON object")]
    Claims,
    #[error("it asks for extensions (`crit`) that nobody here knows")]
    Critical,
    #[error("its algorithm {0:?} isn't accepted")]
    Algorithm(String),
    #[error("its issuer {0:?} isn't a provider's")]
    Issuer(String),
    #[error("the keys of provider {0:?} aren't there (yet)")]
    NoKeys(String),
    #[error("no key of the set is for it")]
    NoKey,
    #[error("its signature is wrong")]
    Signature,
    #[error("it has no `exp`, or one that is no time")]
    NoExpiry,
    #[error("it has expired")]
    Expired,
    #[error("it isn't valid yet")]
    NotYet,
    #[error("it isn't for one of the provider's audiences")]
    Audience,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// The tokens of a request that these providers vouch for.
///
/// # Errors
///
/// Why one isn't believed: a request with a bad token is no request without any.
pub(crate) fn tokens(
    providers: &[Arc<JwtProvider>],
    ring: &KeyRing,
    headers: &HeaderMap,
    now: SystemTime,
) -> Result<Vec<Token>, TokenError> {
    let mut tokens = Vec::new();
    let mut places: Vec<&TokenPlace> = providers.iter().map(|provider| &provider.place).collect();
    places.sort();
    places.dedup();
    for place in places {
        let Some(text) = find(place, headers)? else { continue };
        let parts = Parts::of(text)?;
        let issuer = parts.claims.get("iss").and_then(Value::as_str).unwrap_or_default();
        let mut there = providers.iter().filter(|provider| provider.place == *place);
        let provider = there.find(|provider| *provider.issuer == *issuer);
        let provider = provider.ok_or_else(|| TokenError::Issuer(shortened(issuer)))?;
        let name = || TokenError::NoKeys(provider.name.to_string());
        let keys = ring.keys(&provider.keys).ok_or_else(name)?;
        parts.verify(&keys)?;
        check_claims(provider, &parts.claims, now)?;
        tokens.push(Token { provider: provider.name.clone(), claims: Arc::new(parts.claims) });
    }
    Ok(tokens)
}

/// The one token of a place, if there is any.
fn find<'a>(place: &TokenPlace, headers: &'a HeaderMap) -> Result<Option<&'a str>, TokenError> {
    let mut found: Box<dyn Iterator<Item = &str>> = match place {
        TokenPlace::Header(name) => {
            let lines = headers.get_all(&**name).iter();
            let lines = lines.map(|line| line.to_str().map(str::trim).unwrap_or("?"));
            if &**name == "authorization" {
                Box::new(lines.filter_map(bearer))
            } else {
                Box::new(lines.map(|line| bearer(line).unwrap_or(line)))
            }
        }
        TokenPlace::Cookie(name) => {
            let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
            let pairs = lines.flat_map(|line| line.split(';')).filter_map(|it| it.split_once('='));
            Box::new(pairs.filter(|(key, _)| key.trim() == &**name).map(|(_, value)| value.trim()))
        }
    };
    let first = found.next();
    if found.next().is_some() { Err(TokenError::Several) } else { Ok(first) }
}

/// The token after `Bearer`; none with another scheme.
fn bearer(line: &str) -> Option<&str> {
    let (scheme, token) = line.split_once(' ').unwrap_or((line, ""));
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A token, taken apart. Nothing of it is believed yet.
struct Parts<'a> {
    signed: &'a str,
    algorithm: Algorithm,
    key_id: Option<String>,
    claims: Map<String, Value>,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Self, TokenError> {
        if text.len() > MAX_BYTES {
            return Err(TokenError::TooLong);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
        let header: Header = serde_json::from_slice(&header)
            .map_err(|error| TokenError::Header(error.to_string()))?;
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let algorithm = Algorithm::named(&header.alg);
        Ok(Self {
            signed,
            algorithm: algorithm.ok_or_else(|| TokenError::Algorithm(shortened(&header.alg)))?,
            key_id: header.kid,
            claims: serde_json::from_slice(&claims).map_err(|_| TokenError::Claims)?,
            signature,
        })
    }

    fn verify(&self, keys: &KeySet) -> Result<(), TokenError> {
        let mut fitting = keys.fitting(self.algorithm, self.key_id.as_deref()).peekable();
        if fitting.peek().is_none() {
            return Err(TokenError::NoKey);
        }
        let signed = self.signed.as_bytes();
        let good = fitting.any(|key| key.verifies(self.algorithm, signed, &self.signature));
        good.then_some(()).ok_or(TokenError::Signature)
    }
}

fn check_claims(
    provider: &JwtProvider,
    claims: &Map<String, Value>,
    now: SystemTime,
) -> Result<(), TokenError> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let leeway = provider.leeway.as_secs_f64();
    let expiry = claims.get("exp").and_then(Value::as_f64).ok_or(TokenError::NoExpiry)?;
    if expiry + leeway <= now {
        return Err(TokenError::Expired);
    }
    if let Some(begin) = claims.get("nbf") {
        let begin = begin.as_f64().ok_or(TokenError::NotYet)?;
        if begin - leeway > now {
            return Err(TokenError::NotYet);
        }
    }
    let is_ours = |audience: &Value| {
        let audience = audience.as_str();
        provider.audiences.iter().any(|known| audience == Some(&**known))
    };
    let fits = match claims.get("aud") {
        _ if provider.audiences.is_empty() => true,
        Some(Value::Array(audiences)) => audiences.iter().any(is_ours),
        Some(audience) => is_ours(audience),
        None => false,
    };
    fits.then_some(()).ok_or(TokenError::Audience)
}

/// For the log.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}
