//! Join tokens, as operators handle them.

use std::collections::BTreeMap;

use isthmus_controller_core::TokenRecord;
use isthmus_model::Name;
use isthmus_model::token::{Token, TokenId};
use isthmus_proto::v1;
use tonic::Status;
use zeroize::Zeroizing;

use crate::time;

const DEFAULT_LIFETIME: u64 = 3_600;
const LONGEST_LIFETIME: u64 = 365 * 86_400;
const MOST_LABELS: usize = 64;

/// A new token: what its bearer gets, and what is kept.
pub(crate) struct NewToken {
    pub(crate) token: Token,
    pub(crate) record: TokenRecord,
}

impl NewToken {
    pub(crate) fn make(
        request: v1::CreateTokenRequest,
        ca_hash: [u8; 32],
        controllers: &[String],
    ) -> Result<Self, Status> {
        let v1::CreateTokenRequest { lifetime_seconds, uses, labels, host } = request;
        check_labels(&labels)?;
        if !host.is_empty() {
            host.parse::<Name>().map_err(|error| {
                Status::invalid_argument(format!("{host:?} can't be a host's name: {error}."))
            })?;
        }
        let lifetime = if lifetime_seconds == 0 { DEFAULT_LIFETIME } else { lifetime_seconds };
        if lifetime > LONGEST_LIFETIME {
            return Err(Status::invalid_argument(
                "A token can't be good for more than a year (365 days).",
            ));
        }
        let (mut id, mut secret) = ([0; 8], Zeroizing::new([0; 32]));
        getrandom::fill(&mut id)
            .and_then(|()| getrandom::fill(&mut *secret))
            .map_err(|error| Status::internal(format!("No randomness: {error}.")))?;
        let record = TokenRecord {
            id: TokenId(id),
            secret_hash: blake3::hash(&*secret).into(),
            expires: time::now().saturating_add_unsigned(lifetime),
            uses: uses.max(1),
            used: 0,
            labels,
            host: Some(host).filter(|host| !host.is_empty()),
            revoked: false,
        };
        let controllers = controllers.to_vec();
        Ok(Self { token: Token { id: TokenId(id), secret, ca_hash, controllers }, record })
    }
}

/// In words, for the audit log.
pub(crate) fn what(request: &v1::CreateTokenRequest) -> String {
    let v1::CreateTokenRequest { lifetime_seconds: _, uses, labels, host } = request;
    let mut what = match &**host {
        "" => format!("create a join token for any host, {} uses", (*uses).max(1)),
        host => format!("create a join token for host {host}"),
    };
    if !labels.is_empty() {
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        what.push_str(&format!(", labels {}", labels.join(" ")));
    }
    what
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Status> {
    if labels.len() > MOST_LABELS {
        return Err(Status::invalid_argument(format!("A host has at most {MOST_LABELS} labels.")));
    }
    let good = |text: &String| text.len() <= 256 && !text.chars().any(char::is_control);
    match labels.iter().find(|(key, value)| key.is_empty() || !good(key) || !good(value)) {
        Some((key, value)) => Err(Status::invalid_argument(format!(
            "The label {key:?} = {value:?} is unusable: give a name and at most 256 visible characters."
        ))),
        None => Ok(()),
    }
}

pub(crate) fn info(record: &TokenRecord) -> v1::TokenInfo {
    v1::TokenInfo {
        id: record.id.to_string(),
        expires: record.expires,
        uses: record.uses,
        used: record.used,
        labels: record.labels.clone(),
        host: record.host.clone().unwrap_or_default(),
        revoked: record.revoked,
    }
}
