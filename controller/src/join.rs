//! Join of hosts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_controller_core::{JoinError, Newcomer, RequestHash, TokenRecord, TokenRefusal};
use isthmus_model::token::TokenId;
use isthmus_model::{Name, PublicKey};
use isthmus_proto::v1;
use isthmus_proto::v1::join_server;
use parking_lot::Mutex;
use subtle::ConstantTimeEq as _;
use tonic::{Request, Response, Status};
use tracing::warn;
use zeroize::Zeroizing;

use crate::authority::{Authority, Issued, RequestedKey};
use crate::caller::peer;
use crate::limits::Failures;
use crate::mesh::Mesh;
use crate::store::StoreError;
use crate::time;

/// The service that hosts without a certificate call.
pub(crate) struct Join {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) certificate_lifetime: Duration,
    pub(crate) failures: Mutex<Failures>,
}

/// A request whose parts are what they should be. Whether the token is good is yet to be seen.
struct Wanted {
    token: TokenId,
    secret_hash: blake3::Hash,
    host: Name,
    public_key: PublicKey,
    key: RequestedKey,
}

/// Why a host can't join.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "unknown token {0}: this controller never issued it, or has forgotten it. Ask an operator for a new one (`agentctl token create`)"
    )]
    UnknownToken(TokenId),
    #[error("wrong secret for token {0}. Copy the whole line that `agentctl token create` printed")]
    WrongSecret(TokenId),
    #[error("{}", explain(.0))]
    Token(#[from] TokenRefusal),
    #[error("{0}")]
    Join(#[from] JoinError),
    #[error("the controller can't store it: {0}")]
    Store(#[from] StoreError),
}

#[tonic::async_trait]
impl join_server::Join for Join {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let source = peer(&request)?.address.ip();
        if let Err(wait) = self.failures().check(source, Instant::now()) {
            return Err(Status::resource_exhausted(format!(
                "Too many failed attempts to join from {source}; try again in {} s.",
                wait.as_secs() + 1
            )));
        }
        let wanted = Wanted::read(request.into_inner())?;
        let joined = self.admit(wanted).await;
        if let Err(status) = &joined {
            warn!(%source, reason = status.message(), "a host was refused");
            if status.code() == tonic::Code::Unauthenticated {
                self.failures().record(source, Instant::now());
            }
        }
        joined.map(Response::new)
    }
}

impl Join {
    async fn admit(&self, wanted: Wanted) -> Result<v1::JoinResponse, Status> {
        let Wanted { token, secret_hash, host, public_key, key } = wanted;
        let lifetime = i64::try_from(self.certificate_lifetime.as_secs()).unwrap_or(i64::MAX);
        let now = time::now();
        let newcomer = Newcomer {
            name: host.clone(),
            public_key,
            labels: BTreeMap::new(),
            now,
            certificate_expires: now.saturating_add(lifetime),
            request: request_hash(token, public_key, &key),
            is_expected: false,
        };
        let known = move |tokens: &BTreeMap<TokenId, TokenRecord>| {
            find(tokens, token, &secret_hash).cloned()
        };
        let membership = self.mesh.work(move |mesh| mesh.join(newcomer, known)).await??;
        let issued =
            self.authority.host(&host, membership, &key, self.certificate_lifetime).map_err(
                |error| Status::internal(format!("No certificate could be made: {error:#}.")),
            )?;
        let identity = &self.mesh.now().state.identity;
        Ok(v1::JoinResponse {
            host_id: membership.id.0,
            mesh: identity.name.to_string(),
            trust_domain: identity.trust_domain.to_string(),
            certificate: Some(certificate_message(&issued)),
        })
    }

    fn failures(&self) -> parking_lot::MutexGuard<'_, Failures> {
        self.failures.lock()
    }
}

/// The secret first: whoever doesn't have it learns nothing else about a token.
fn find<'a>(
    tokens: &'a BTreeMap<TokenId, TokenRecord>,
    id: TokenId,
    secret_hash: &blake3::Hash,
) -> Result<&'a TokenRecord, Refusal> {
    let token = tokens.get(&id).ok_or(Refusal::UnknownToken(id))?;
    if !bool::from(token.secret_hash.ct_eq(secret_hash.as_bytes())) {
        return Err(Refusal::WrongSecret(id));
    }
    Ok(token)
}

fn request_hash(token: TokenId, public_key: PublicKey, key: &RequestedKey) -> RequestHash {
    let mut hash = blake3::Hasher::new();
    hash.update(&token.0).update(&public_key.0).update(key.hash().as_bytes());
    hash.finalize().into()
}

fn explain(refusal: &TokenRefusal) -> String {
    let new = "Ask an operator for a new one (`agentctl token create`)";
    match refusal {
        TokenRefusal::Expired(id, at) => {
            format!("token {id} expired at {}. {new}", time::show(*at))
        }
        TokenRefusal::Revoked(_) | TokenRefusal::UsedUp { .. } => format!("{refusal}. {new}"),
        TokenRefusal::OtherHost { bound, .. } => {
            format!("{refusal}. Join as {bound:?}, or ask an operator for another token")
        }
    }
}

impl Wanted {
    fn read(request: v1::JoinRequest) -> Result<Self, Status> {
        let bad = |what: String| Status::invalid_argument(what);
        let token: [u8; 8] = token_id(&request.token_id)
            .ok_or_else(|| bad("The token's id must be 16 hexadecimal digits.".to_owned()))?;
        let secret = Zeroizing::new(request.token_secret);
        let host = request.host.parse().map_err(|error| {
            bad(format!(
                "{:?} can't be a host's name: {error}. Choose one with --name.",
                request.host
            ))
        })?;
        let public_key: [u8; 32] = request
            .public_key
            .try_into()
            .map_err(|_| bad("The tunnel key must have 32 bytes.".to_owned()))?;
        if public_key == [0; 32] {
            return Err(bad("The tunnel key is all zeros.".to_owned()));
        }
        let key = RequestedKey::from_der(&request.certificate_request)
            .map_err(|error| bad(format!("Bad certificate request: {error}.")))?;
        Ok(Self {
            token: TokenId(token),
            secret_hash: blake3::hash(&secret),
            host,
            public_key: PublicKey(public_key),
            key,
        })
    }
}

fn token_id(text: &str) -> Option<[u8; 8]> {
    text.parse::<TokenId>().ok().map(|id| id.0)
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = format!("The controller refused the join: {refusal}.");
        match refusal {
            Refusal::UnknownToken(_) | Refusal::WrongSecret(_) | Refusal::Token(_) => {
                Self::unauthenticated(text)
            }
            Refusal::Join(_) => Self::failed_precondition(text),
            Refusal::Store(_) => Self::unavailable(text),
        }
    }
}

pub(crate) fn certificate_message(issued: &Issued) -> v1::Certificate {
    v1::Certificate { chain: issued.chain.iter().map(|der| der.to_vec()).collect() }
}
