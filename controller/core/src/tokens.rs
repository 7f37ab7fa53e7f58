//! Join tokens as the controller keeps them: without their secrets.

use std::collections::BTreeMap;

use isthmus_model::Name;
use isthmus_model::token::TokenId;
use serde::{Deserialize, Serialize};

use crate::text;

/// How long a token is remembered after it expired, so that its late user hears why it fails.
const KEPT_SECONDS: i64 = 7 * 86_400;

/// Record of a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Names it.
    #[serde(with = "text")]
    pub id: TokenId,
    /// The hash of its secret.
    pub secret_hash: [u8; 32],
    /// When it stops working, in seconds since the epoch.
    pub expires: i64,
    /// Number of hosts that may join with it.
    pub uses: u32,
    /// Number of hosts that have.
    pub used: u32,
    /// Labels that it grants.
    pub labels: BTreeMap<String, String>,
    /// The only name that it is good for, if it is bound to one.
    pub host: Option<String>,
    /// Whether an operator has withdrawn it.
    pub revoked: bool,
}

/// Why a token doesn't let a host in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// An operator has withdrawn it.
    #[error("token {0} was revoked")]
    Revoked(TokenId),
    /// Its time is over. The second field is when, in seconds since the epoch.
    #[error("token {0} has expired")]
    Expired(TokenId, i64),
    /// As many hosts have joined with it as may.
    #[error("token {id} is used up ({used} of {uses} uses)")]
    UsedUp {
        /// The token.
        id: TokenId,
        /// Number of hosts that have joined with it.
        used: u32,
        /// Number of hosts that may.
        uses: u32,
    },
    /// It is bound to another name.
    #[error("token {id} is for host {bound:?} only, not for {wanted:?}")]
    OtherHost {
        /// The token.
        id: TokenId,
        /// The name that it is good for.
        bound: String,
        /// The name that was asked for.
        wanted: Name,
    },
}

impl TokenRecord {
    /// Says whether a host of this name may join with the token. Its secret has been checked.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn check(&self, host: &Name, now: i64) -> Result<(), TokenRefusal> {
        if self.revoked {
            return Err(TokenRefusal::Revoked(self.id));
        }
        if now >= self.expires {
            return Err(TokenRefusal::Expired(self.id, self.expires));
        }
        if self.used >= self.uses {
            return Err(TokenRefusal::UsedUp { id: self.id, used: self.used, uses: self.uses });
        }
        match &self.host {
            Some(bound) if bound != host.as_str() => Err(TokenRefusal::OtherHost {
                id: self.id,
                bound: bound.clone(),
                wanted: host.clone(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether nobody needs to hear of this token any more.
    #[must_use]
    pub fn is_forgettable(&self, now: i64) -> bool {
        now > self.expires.saturating_add(KEPT_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> TokenRecord {
        TokenRecord {
            id: TokenId([1; 8]),
            secret_hash: [0; 32],
            expires: 100,
            uses: 2,
            used: 1,
            labels: BTreeMap::new(),
            host: None,
            revoked: false,
        }
    }

    #[test]
    fn a_token_is_good_until_it_expires_is_used_up_or_revoked() {
        let host: Name = "app-1".parse().unwrap();
        let id = token().id;
        assert_eq!(token().check(&host, 99), Ok(()));
        assert_eq!(token().check(&host, 100), Err(TokenRefusal::Expired(id, 100)));
        let used_up = TokenRecord { used: 2, ..token() };
        assert_eq!(used_up.check(&host, 1), Err(TokenRefusal::UsedUp { id, used: 2, uses: 2 }));
        let revoked = TokenRecord { revoked: true, ..token() };
        assert_eq!(revoked.check(&host, 1), Err(TokenRefusal::Revoked(id)));
    }

    #[test]
    fn a_token_bound_to_a_name_is_good_for_no_other() {
        let token = TokenRecord { host: Some("app-1".to_owned()), ..token() };
        assert_eq!(token.check(&"app-1".parse().unwrap(), 1), Ok(()));
        let refused = token.check(&"app-2".parse().unwrap(), 1);
        assert!(matches!(refused, Err(TokenRefusal::OtherHost { .. })));
    }
}
