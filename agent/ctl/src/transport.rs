//! Connections to the controller and to the local agent.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use isthmus_proto::v1;
use isthmus_proto::v1::admin_client::AdminClient;
use isthmus_proto::v1::credentials_client::CredentialsClient;
use isthmus_proto::v1::local_client::LocalClient;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri};
use tonic::{Response, Status};

use crate::cli::{Format, Global};
use crate::credentials::{self, Age, Credentials};
use crate::errors::{Failure, find_io, refused, root_cause};
use crate::output::warn;
use crate::programs::{AGENT, program};
use crate::words::{now, timestamp};

const DEFAULT_SOCKET: &str = "/run/isthmus/agent.sock";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Topologies and snapshots may be large.
const MOST_BYTES: usize = 256 << 20;

/// What the global options say, and where they said it.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// Text or JSON.
    pub(crate) output: Format,
    socket: Option<PathBuf>,
    credentials: Option<PathBuf>,
}

/// Whom a command that works either way asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// The controller.
    Mesh,
    /// The agent of this host.
    Agent,
}

impl Session {
    /// `on_line` tells which of the two were given on the command line: they beat what the
    /// environment says.
    pub(crate) fn new(global: Global, on_line: &[Whom]) -> Self {
        let Global { credentials, socket, output } = global;
        match on_line {
            [Whom::Mesh] => Self { output, credentials, socket: None },
            [Whom::Agent] => Self { output, credentials: None, socket },
            _ => Self { output, credentials, socket },
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        self.socket.as_deref().unwrap_or_else(|| Path::new(DEFAULT_SOCKET))
    }

    fn credentials(&self) -> Option<PathBuf> {
        self.credentials.clone().or_else(credentials::default_path)
    }

    /// Whom to ask for status: this host where an agent runs, else the mesh.
    pub(crate) fn status_from(&self) -> Whom {
        self.explicit().unwrap_or_else(|| {
            let agent = self.socket().exists() || self.credentials().is_none();
            if agent { Whom::Agent } else { Whom::Mesh }
        })
    }

    /// Whom to ask about policy: the mesh where there are credentials, since it knows all rules.
    pub(crate) fn policy_from(&self) -> Whom {
        self.explicit()
            .unwrap_or_else(|| if self.credentials().is_some() { Whom::Mesh } else { Whom::Agent })
    }

    fn explicit(&self) -> Option<Whom> {
        match (&self.credentials, &self.socket) {
            (Some(_), _) => Some(Whom::Mesh),
            (None, Some(_)) => Some(Whom::Agent),
            (None, None) => None,
        }
    }

    /// Reaches the agent of this host.
    pub(crate) async fn agent(&self) -> Result<LocalClient<Channel>> {
        let path = self.socket().to_owned();
        let connector = {
            let path = path.clone();
            tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            })
        };
        // The name is never looked up; HTTP/2 wants one.
        let endpoint = Endpoint::from_static("http://localhost");
        let connecting = endpoint.connect_with_connector(connector);
        let channel = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => {
                let kind = find_io(&error).map(io::Error::kind);
                let installed = program(AGENT).is_some();
                return Err(no_agent(&path, &root_cause(&error), kind, installed).into());
            }
            Err(_) => {
                let problem = format!("Failed to reach the agent at {}", path.display());
                return Err(Failure::Unreachable(format!(
                    "{problem}: no answer within {} s; look at its log (journalctl -u isthmus-agent)",
                    CONNECT_TIMEOUT.as_secs()
                ))
                .into());
            }
        };
        Ok(LocalClient::new(channel).max_decoding_message_size(MOST_BYTES))
    }

    /// The operator's credentials.
    pub(crate) fn operator(&self) -> Result<Credentials> {
        Credentials::read(&self.operator_file()?)
    }

    fn operator_file(&self) -> Result<PathBuf> {
        self.credentials().ok_or_else(|| {
            Failure::Unreachable(
                "There are no operator's credentials: name them with --credentials, or put the \
                 folder that `isthmus-controller init` wrote at ~/.config/isthmus/"
                    .to_owned(),
            )
            .into()
        })
    }

    /// Reaches the controller, as an operator. A certificate that is old is renewed in passing.
    pub(crate) async fn controller(&self) -> Result<AdminClient<Channel>> {
        let path = self.operator_file()?;
        let mut credentials = Credentials::read(&path)?;
        let mut channel = reach(&credentials, &path).await?;
        match credentials.age(now()) {
            Age::Young => {}
            Age::Old => {
                // There is time for another attempt.
                let _ = renew(&mut credentials, channel.clone()).await;
            }
            Age::Expired(at) => {
                if let Err(why) = renew(&mut credentials, channel).await {
                    return Err(expired(at, &why).into());
                }
                channel = reach(&credentials, &path).await?;
            }
        }
        Ok(AdminClient::new(channel).max_decoding_message_size(MOST_BYTES))
    }
}

/// One of the controllers that the credentials name.
async fn reach(credentials: &Credentials, path: &Path) -> Result<Channel> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&credentials.ca))
        .identity(credentials.identity())
        .domain_name(&credentials.server_name);
    let mut problems = Vec::new();
    for address in &credentials.controllers {
        match connect(address, tls.clone()).await {
            Ok(channel) => return Ok(channel),
            Err(cause) => problems.push(format!("at {address}: {cause}")),
        }
    }
    let problems = problems.join("; ");
    let hint = controller_hint(&problems, path);
    Err(Failure::Unreachable(format!("Failed to reach the controller {problems}; {hint}")).into())
}

async fn renew(credentials: &mut Credentials, channel: Channel) -> Result<()> {
    let request = v1::RenewRequest { certificate_request: credentials.request()? };
    let mut client = CredentialsClient::new(channel);
    let renewed = match timeout(CONNECT_TIMEOUT, client.renew(request)).await {
        Ok(renewed) => renewed.map_err(|status| refused(&status, "the controller"))?.into_inner(),
        Err(_) => anyhow::bail!("the controller doesn't answer"),
    };
    let leaf = renewed.chain.first().context("The controller gave no certificate")?;
    if let Err(error) = credentials.renew(leaf) {
        warn(&format!("the operator's certificate was renewed, but can't be kept: {error:#}"));
    }
    Ok(())
}

fn expired(at: i64, why: &anyhow::Error) -> Failure {
    let at = timestamp(at).unwrap_or_default();
    Failure::Refused(format!(
        "These credentials expired at {at} and can't be renewed: {why:#} An administrator makes others by `agentctl operator add NAME --role ROLE --out DIR`, whoever has the controller's machine by `isthmus-controller operator NAME --out DIR`"
    ))
}

async fn connect(address: &str, tls: ClientTlsConfig) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .and_then(|endpoint| endpoint.tls_config(tls))
        .map_err(|error| root_cause(&error))?
        .tcp_nodelay(true);
    match timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(root_cause(&error)),
        Err(_) => Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
    }
}

fn no_agent(path: &Path, cause: &str, kind: Option<io::ErrorKind>, installed: bool) -> Failure {
    if kind == Some(io::ErrorKind::NotFound) && !installed {
        return Failure::Unreachable(format!(
            "This machine has no agent ({} isn't there), so it can't be asked about its own traffic: run \
             this on a host of the mesh. Here the controller can be asked, with an operator's credentials: \
             `agentctl status --mesh`, `agentctl explain`, `agentctl whois`. To make this machine a host, \
             install isthmus-agent, then `agentctl join -`",
            path.display()
        ));
    }
    let hint = match kind {
        Some(io::ErrorKind::PermissionDenied) => "run agentctl as root",
        _ => "is isthmus-agent running? (systemctl status isthmus-agent)",
    };
    Failure::Unreachable(format!(
        "Failed to reach the agent at {}: {cause}; {hint}",
        path.display()
    ))
}

fn controller_hint(problems: &str, credentials: &Path) -> String {
    // As the TLS library has it: a CA that was made anew has the same name, and another key.
    if problems.contains("UnknownIssuer") || problems.contains("BadSignature") {
        format!(
            "its certificate is signed by another CA than the one of these credentials ({}): if the \
             controller was set up anew, use the credentials that its `isthmus-controller init` \
             wrote; if another controller answers there, correct `controllers` in that file",
            credentials.display()
        )
    } else if problems.contains("ertificate") {
        format!("are the credentials in {} those of this mesh?", credentials.display())
    } else {
        "is isthmus-controller running there, and does a firewall let this machine through?"
            .to_owned()
    }
}

/// Asks the agent one thing.
pub(crate) async fn ask_agent<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T> {
    ask(call, "the agent").await
}

/// Asks the controller one thing.
pub(crate) async fn ask_controller<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T> {
    ask(call, "the controller").await
}

async fn ask<T>(call: impl Future<Output = Result<Response<T>, Status>>, whom: &str) -> Result<T> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(refused(&status, whom).into()),
        Err(_) => Err(Failure::Unreachable(format!(
            "Gave up on {whom}: it didn't answer within {} s; look at its log",
            CALL_TIMEOUT.as_secs()
        ))
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::errors::{Exit, exit};

    fn session(credentials: Option<&str>, socket: Option<&str>, on_line: &[Whom]) -> Session {
        let global = Global {
            credentials: credentials.map(Into::into),
            socket: socket.map(Into::into),
            output: Format::Text,
        };
        Session::new(global, on_line)
    }

    #[test]
    fn what_is_given_explicitly_is_asked() {
        assert_eq!(session(Some("c"), None, &[Whom::Mesh]).status_from(), Whom::Mesh);
        assert_eq!(session(None, Some("s"), &[Whom::Agent]).status_from(), Whom::Agent);
        assert_eq!(session(None, Some("s"), &[Whom::Agent]).policy_from(), Whom::Agent);
        // The command line beats the environment.
        assert_eq!(session(Some("c"), Some("s"), &[Whom::Agent]).status_from(), Whom::Agent);
        assert_eq!(session(Some("c"), Some("s"), &[Whom::Mesh]).policy_from(), Whom::Mesh);
    }

    #[tokio::test]
    async fn an_agent_that_is_not_there_is_named_with_the_next_step() {
        let session = session(None, Some("/nonexistent/agent.sock"), &[]);
        let error = session.agent().await.err().unwrap();
        assert_eq!(exit(&error), Exit::Unreachable);
        let away = |installed| {
            let (path, kind) = (session.socket(), Some(io::ErrorKind::NotFound));
            no_agent(path, "no such file", kind, installed).to_string()
        };
        let without = away(false);
        for part in ["/nonexistent/agent.sock", "has no agent", "`agentctl status --mesh`"] {
            assert!(without.contains(part), "{without}");
        }
        assert_eq!(
            away(true),
            "Failed to reach the agent at /nonexistent/agent.sock: no such file; is isthmus-agent \
             running? (systemctl status isthmus-agent)"
        );
    }

    #[tokio::test]
    async fn a_controller_with_another_ca_is_told_from_one_that_is_away() {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
        use rustls::crypto::aws_lc_rs;
        use rustls::pki_types::PrivatePkcs8KeyDer;
        use rustls::{ServerConfig, version};
        use tokio::net::TcpListener;
        use tokio_rustls::TlsAcceptor;

        let authority = || {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let (ours, theirs) = (authority(), authority());
        let name = "controller.corp.example".to_owned();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.clone()]).unwrap();
        let leaf = leaf.signed_by(&key, &theirs).unwrap().der().clone();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf, theirs.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            drop(TlsAcceptor::from(Arc::new(server)).accept(stream).await);
        });
        let ca = Certificate::from_pem(ours.pem());
        let tls = ClientTlsConfig::new().ca_certificate(ca).domain_name(name);
        let cause = connect(&address, tls).await.unwrap_err();
        serving.await.unwrap();
        let hint = controller_hint(&cause, Path::new("/o.toml"));
        assert!(hint.contains("by another CA") && hint.contains("/o.toml"), "{cause}: {hint}");
        let away = controller_hint("connection refused", Path::new("/o.toml"));
        assert!(away.starts_with("is isthmus-controller running"), "{away}");
    }

    #[tokio::test]
    async fn missing_credentials_are_named() {
        let error =
            session(Some("/nonexistent/o.toml"), None, &[]).controller().await.err().unwrap();
        assert!(format!("{error:#}").contains("/nonexistent/o.toml"), "{error:#}");
    }
}
