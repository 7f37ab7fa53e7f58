//! JSON Web Tokens: whose a service believes, and what a rule asks of them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::name::Name;
use crate::route::FieldMatch;

/// `[jwt.NAME]`: who issues tokens, and how they are known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JwtProvider {
    /// Its name.
    pub name: Name,
    /// Required value of `iss`.
    pub issuer: Arc<str>,
    /// `aud` must name one of these. Empty: whatever `aud` is.
    pub audiences: Vec<Arc<str>>,
    /// Location of its keys (a JWK set, RFC 7517).
    pub keys: KeySource,
    /// Location of the token in requests.
    pub place: TokenPlace,
    /// Tolerated clock skew.
    pub leeway: Duration,
}

/// Location of a JWK set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySource {
    /// In a file of each host that needs it.
    File(PathBuf),
    /// At this URL, `https` or `http`.
    Url(Arc<str>),
}

/// Location of the token in a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenPlace {
    /// In this header field, by lower-case name; behind `Bearer ` if it is `authorization`.
    Header(Arc<str>),
    /// In this cookie.
    Cookie(Arc<str>),
}

/// `jwt` in a match: a token must be there, and say this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtMatch {
    /// Issuer of the token.
    pub provider: Arc<JwtProvider>,
    /// Its claims. Of a claim that is a list, any element may fit; `scope` is a list of words.
    pub claims: Vec<FieldMatch>,
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// As in `jwt corp role=admin`.
impl fmt::Display for JwtMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "jwt {}", self.provider.name)?;
        self.claims.iter().try_for_each(|claim| write!(f, " {claim}"))
    }
}
