//! Joining a mesh: from a token to an identity.
//!
//! The keys are made here; only their public halves leave. The token's secret is sent to nobody
//! but a controller that proved to have the CA whose hash the token holds.

use std::time::Duration;

use anyhow::Context as _;
use isthmus_model::token::Token;
use isthmus_model::{HostId, Name};
use isthmus_proto::v1;
use isthmus_proto::v1::join_client::JoinClient;
use rustls_pki_types::ServerName;
use tonic::Code;

use crate::identity::{Identity, Member, TlsKey, TunnelKey};
use crate::tls::{self, ConnectError, PinnedCa};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why this host is no member. The messages are for the person who typed the token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    /// No controller of the token answers; one line for each.
    #[error("{}", attempts.join("; "))]
    Unreachable {
        /// Failure at each address.
        attempts: Vec<String>,
    },
    /// Whoever answers is not the controller that issued the token.
    #[error(transparent)]
    Foreign(ConnectError),
    /// The controller refuses; its own words.
    #[error("{message}")]
    Refused {
        /// gRPC status code of the refusal.
        code: Code,
        /// Message of the controller.
        message: String,
    },
    /// The controller's answer can't be used, or this host fails.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Makes this host a member under the name `host`. Whoever doesn't get the answer can ask again with
/// the same keys.
///
/// # Errors
/// See [`JoinError`].
pub(crate) async fn join(token: &Token, host: Name, keys: Keys) -> Result<Identity, JoinError> {
    let pin = PinnedCa::new(token.ca_hash);
    let stream = connect_to_any(&token.controllers, &pin).await?;
    let channel = tls::channel(stream).await?;
    let request = v1::JoinRequest {
        token_id: token.id.to_string(),
        token_secret: token.secret.to_vec(),
        host: host.to_string(),
        public_key: keys.tunnel.public()?.0.to_vec(),
        certificate_request: keys.tls.request()?,
    };
    let call = async { JoinClient::new(channel).join(request).await };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, call)
        .await
        .context("The controller didn't answer within 10 s")?
        .map_err(|status| refused(&status))?;
    Ok(member(answer.into_inner(), host, keys, token, &pin)?)
}

/// The keys that a host joins with.
pub(crate) struct Keys {
    pub tunnel: TunnelKey,
    pub tls: TlsKey,
}

impl Keys {
    /// # Errors
    /// When the system has no randomness to give.
    pub(crate) fn generate() -> anyhow::Result<Self> {
        Ok(Self { tunnel: TunnelKey::generate()?, tls: TlsKey::generate()? })
    }
}

/// The controllers of a token are equals: the first that answers will do. One with a foreign CA
/// ends the search, because the token's bearer must know of it.
async fn connect_to_any(
    controllers: &[String],
    pin: &std::sync::Arc<PinnedCa>,
) -> Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>, JoinError> {
    let config = tls::joining_config(pin)?;
    let mut attempts = Vec::new();
    for address in controllers {
        // The pin verifies the name that the certificate claims; see `PinnedCa`.
        let name = ServerName::try_from("controller").context("A constant name")?;
        match tls::connect(address, config.clone(), name).await {
            Ok(stream) => return Ok(stream),
            Err(error @ ConnectError::ForeignCa { .. }) => return Err(JoinError::Foreign(error)),
            Err(error) => attempts.push(error.to_string()),
        }
    }
    Err(JoinError::Unreachable { attempts })
}

fn refused(status: &tonic::Status) -> JoinError {
    let message = match status.message() {
        "" => format!("the controller refused: {}", status.code().description()),
        message => message.to_owned(),
    };
    JoinError::Refused { code: status.code(), message }
}

fn member(
    answer: v1::JoinResponse,
    host: Name,
    keys: Keys,
    token: &Token,
    pin: &PinnedCa,
) -> anyhow::Result<Identity> {
    let trust_domain =
        answer.trust_domain.parse().context("The controller's answer has a bad trust domain")?;
    anyhow::ensure!(
        pin.trust_domain().as_ref() == Some(&trust_domain),
        "The controller's answer and its certificate name different trust domains"
    );
    anyhow::ensure!(answer.host_id != 0, "The controller gave this host no number");
    let member = Member {
        host_id: HostId(answer.host_id),
        host,
        mesh: answer.mesh,
        trust_domain,
        controllers: token.controllers.clone(),
        prefixes: Vec::new(),
    };
    let chain = answer.certificate.context("The controller sent no certificate")?.chain;
    let tls = keys.tls.with_chain(chain, pin.hash(), &member)?;
    Ok(Identity { member, tunnel: keys.tunnel, next: None, tls })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::service::TowerToHyperService;
    use isthmus_model::token::TokenId;
    use isthmus_proto::v1::join_server::{self, JoinServer};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tonic::{Request, Response, Status};
    use zeroize::Zeroizing;

    use super::*;
    use crate::tls::tests::{Authority, HostCertificate};

    const SECRET: [u8; 32] = [9; 32];

    struct Controller(Arc<Authority>);

    #[tonic::async_trait]
    impl join_server::Join for Controller {
        async fn join(
            &self,
            request: Request<v1::JoinRequest>,
        ) -> Result<Response<v1::JoinResponse>, Status> {
            let request = request.into_inner();
            if request.token_secret != SECRET {
                return Err(Status::unauthenticated("The token's secret is wrong."));
            }
            let member = crate::identity::tests::member();
            let names = HostCertificate { host: request.host, ..HostCertificate::of(&member) };
            let chain = self.0.sign(&request.certificate_request, &names);
            Ok(Response::new(v1::JoinResponse {
                host_id: 7,
                mesh: member.mesh,
                trust_domain: member.trust_domain.to_string(),
                certificate: Some(v1::Certificate { chain }),
            }))
        }
    }

    async fn controller(authority: &Arc<Authority>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (config, service) =
            (authority.server("controller.corp.example"), Controller(Arc::clone(authority)));
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else { return };
            let service = TowerToHyperService::new(JoinServer::new(service));
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(http2.serve_connection(TokioIo::new(stream), service).await);
        });
        address
    }

    fn token(authority: &Authority, controllers: Vec<String>) -> Token {
        Token {
            id: TokenId([1; 8]),
            secret: Zeroizing::new(SECRET),
            ca_hash: authority.hash().into(),
            controllers,
        }
    }

    async fn join_with(token: &Token) -> Result<Identity, JoinError> {
        join(token, name(), Keys::generate().unwrap()).await
    }

    fn name() -> Name {
        "app-9".parse().unwrap()
    }

    #[tokio::test]
    async fn a_token_makes_the_host_a_member_even_if_one_controller_is_away() {
        let authority = Arc::new(Authority::new());
        let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let controllers = vec![away.to_string(), controller(&authority).await];
        let identity = join_with(&token(&authority, controllers.clone())).await.ok().unwrap();
        assert_eq!(identity.member.host_id, HostId(7));
        assert_eq!(identity.member.host, name());
        assert_eq!(identity.member.trust_domain.as_str(), "corp.example");
        assert_eq!(identity.member.controllers, controllers);
    }

    #[tokio::test]
    async fn the_controllers_words_of_refusal_are_passed_on() {
        let authority = Arc::new(Authority::new());
        let mut token = token(&authority, vec![controller(&authority).await]);
        token.secret = Zeroizing::new([1; 32]);
        let error = join_with(&token).await.err().unwrap();
        assert_eq!(error.to_string(), "The token's secret is wrong.");
    }

    #[tokio::test]
    async fn a_foreign_controller_never_sees_the_tokens_secret() {
        let (ours, other) = (Authority::new(), Arc::new(Authority::new()));
        let token = token(&ours, vec![controller(&other).await]);
        let error = join_with(&token).await.err().unwrap();
        assert!(matches!(error, JoinError::Foreign(_)), "{error}");
        assert!(error.to_string().contains("CA was changed"), "{error}");
    }

    #[tokio::test]
    async fn when_nobody_answers_every_address_is_named() {
        let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let token = token(&Authority::new(), vec![away.to_string(), "127.0.0.1:1".to_owned()]);
        let error = join_with(&token).await.err().unwrap().to_string();
        assert!(error.contains(&away.to_string()) && error.contains("127.0.0.1:1"), "{error}");
    }
}
