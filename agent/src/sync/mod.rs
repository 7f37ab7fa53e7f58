//! The control stream: one session with one controller, from connecting to losing it.
//!
//! ```text
//!  agent ── Hello(revision) ─▶ controller
//!        ◀─ Welcome(clock, …)             its time, and where it can be reached
//!        ◀─ Delta(base, …) ──             switch the data plane, keep it on disk,
//!        ── Accepted|Refused ▶            then answer
//!        ── Endpoints, Problems,          whenever there is something to say
//!           Report ──────────▶
//!        ◀─ Shares ──────────             of rate limits, while reports tell the demand
//!        ◀─ Watch ───────────             which routes' traffic belongs into reports
//!        ◀─ Check ───────────             before the mesh's addresses move:
//!        ── Checked ─────────▶            which route of this host is in the way
//!        ◀─ RotateKey ─────────           an operator wants this host to have another key:
//!        ── TunnelKey ───────▶            here is its public half
//!        ◀─ Removed ─────────             the end
//! ```
//!
//! A controller that finds the certificate out of its time refuses the stream; it has the host renew
//! first. Who was away for longer than certificates live gets back that way.
//!
//! A session knows nothing of what a snapshot does: [`Member`] is told of each, and says whether
//! it works by it now.

pub(crate) mod backoff;
pub(crate) mod resources;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use ipnet::IpNet;
use isthmus_model::{Capability, PublicKey};
use isthmus_net::monitor::AddressMonitor;
use isthmus_proto::v1;
use isthmus_proto::v1::agent_message::Body as FromAgent;
use isthmus_proto::v1::controller_message::Body as FromController;
use isthmus_proto::v1::sync_client::SyncClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::clock::Clock;
use crate::identity::{Credentials, TlsIdentity, TlsKey};
use crate::tls;
use backoff::Backoff;
use resources::Resources;

/// A snapshot of a large mesh has tens of thousands of resources.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const REPORT_EVERY: Duration = Duration::from_secs(1);
const CERTIFICATE_CHECK_FIRST: Duration = Duration::from_secs(1);
const CERTIFICATE_CHECK_EVERY: Duration = Duration::from_secs(30);
/// What made a host refuse a revision may be gone: it asks again.
const RETRY_REFUSED_AFTER: Duration = Duration::from_secs(15);

/// Host's side of a session.
pub(crate) trait Member: Send {
    /// Takes over a new revision. Returns what it brings with it here that an operator should know.
    ///
    /// # Errors
    /// The reason, for the operator, why this host can't work by it; it goes on by the old one.
    fn switch(
        &mut self,
        resources: Resources,
    ) -> impl Future<Output = Result<Vec<v1::Problem>, String>> + Send;

    /// The snapshot that this host runs.
    fn resources(&self) -> &Resources;

    /// Known endpoints of its tunnels.
    fn endpoints(&self) -> impl Future<Output = Vec<SocketAddr>> + Send;

    /// The route of this host that leads elsewhere with some of `prefixes`; empty for none.
    fn clash(&self, prefixes: &[IpNet]) -> impl Future<Output = String> + Send;

    /// Report for the controller since the last call.
    fn report(&mut self) -> v1::Report;

    /// All that is wrong with this host.
    fn problems(&self) -> Vec<v1::Problem>;

    /// The controller wants to be told what becomes of requests of these routes.
    fn watch(&mut self, routes: Vec<String>);

    /// The controller deals out shares of rate limits.
    fn shares(&mut self, shares: v1::Shares);

    /// Unique id of this run of the agent.
    fn instance(&self) -> Vec<u8>;

    /// Controller's time.
    fn clock(&mut self, clock: &Clock);

    /// Controllers' addresses, as sent by the controller.
    fn controllers(&mut self, addresses: Vec<String>) -> impl Future<Output = ()> + Send;

    /// The controller has taken this host in.
    fn connected(&mut self, controller: &str);

    /// Takes over a new certificate.
    fn renewed(&mut self, tls: TlsIdentity) -> impl Future<Output = ()> + Send;

    /// The key that is to take the place of this host's tunnel key; from now on it is good as well.
    fn new_key(&mut self) -> impl Future<Output = anyhow::Result<PublicKey>> + Send;

    /// The overlay's device, whose changes concern nobody.
    fn device(&self) -> Option<u32>;
}

/// Regular end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// There is a new certificate to show.
    Renewed,
    /// The controller sent a delta that doesn't fit: the next session asks for everything.
    OutOfStep,
    /// This host refused the newest revision a while ago: the next session lets it try again.
    Refused,
    /// The host was removed from the mesh.
    Removed(String),
    /// Another machine is connected as this host.
    Twin(String),
}

/// Holds one session with the controller at `address`.
///
/// # Errors
/// Whatever ended it: not reachable, refused, connection lost.
pub(crate) async fn session(
    address: &str,
    ours: &Credentials,
    member: &mut impl Member,
    from_scratch: bool,
) -> anyhow::Result<Ended> {
    let name = tls::controller_name(&ours.member.trust_domain)?;
    let stream = tls::connect(address, tls::member_config(&ours.tls)?, name).await?;
    let client =
        SyncClient::new(tls::channel(stream).await?).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let changes = AddressMonitor::start(member.device())?;
    let endpoints = member.endpoints().await;
    let revision = if from_scratch { 0 } else { member.resources().revision() };
    let (outgoing, messages) = mpsc::channel(16);
    let hello = v1::Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision,
        endpoints: Some(to_message(&endpoints)),
        clock: Clock::ours().milliseconds(),
        instance: member.instance(),
        epoch: if from_scratch { 0 } else { member.resources().epoch() },
        capabilities: Capability::ALL.map(|it| it.name().to_owned()).into(),
    };
    outgoing.send(message(FromAgent::Hello(hello))).await?;
    let opening = async { client.clone().stream(ReceiverStream::new(messages)).await };
    let opened = tokio::time::timeout(ANSWER_TIMEOUT, opening)
        .await
        .context("The controller didn't answer within 10 s")?;
    let mut session = Session::new(client, ours, outgoing, endpoints);
    match opened {
        Ok(incoming) => {
            let ended = session.run(address, member, incoming.into_inner(), changes).await;
            ended.or_else(twin)
        }
        Err(status) if status.code() == Code::Unauthenticated => {
            let why = status.message().to_owned();
            let tls = session.renew().await.with_context(|| why.clone())?;
            member.renewed(tls).await;
            tracing::info!(why, "renewed this host's certificate, which was out of its time");
            Ok(Ended::Renewed)
        }
        Err(status) => Err(said(status)),
    }
}

/// Outcome of a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Accepted,
    Refused,
    OutOfStep,
}

struct Session<'a> {
    client: SyncClient<Channel>,
    ours: &'a Credentials,
    outgoing: mpsc::Sender<v1::AgentMessage>,
    /// Last report to the controller.
    endpoints: Vec<SocketAddr>,
    problems: Option<Vec<v1::Problem>>,
    clock: Clock,
    /// After failed attempts to renew the certificate.
    renewal_backoff: Backoff,
}

impl<'a> Session<'a> {
    fn new(
        client: SyncClient<Channel>,
        ours: &'a Credentials,
        outgoing: mpsc::Sender<v1::AgentMessage>,
        endpoints: Vec<SocketAddr>,
    ) -> Self {
        Self {
            client,
            ours,
            outgoing,
            endpoints,
            problems: None,
            clock: Clock::ours(),
            renewal_backoff: Backoff::new(),
        }
    }

    async fn run(
        &mut self,
        address: &str,
        member: &mut impl Member,
        mut incoming: Streaming<v1::ControllerMessage>,
        mut changes: AddressMonitor,
    ) -> anyhow::Result<Ended> {
        let mut report = tokio::time::interval(REPORT_EVERY);
        let jitter = backoff::random();
        let mut renew_at = self.renewal(jitter)?;
        let mut retry_at = None;
        let mut is_welcome = false;
        loop {
            tokio::select! {
                received = incoming.message() => {
                    let received = received.map_err(said)?;
                    let received = received.context("The controller ended the stream")?;
                    if !is_welcome {
                        is_welcome = true;
                        member.connected(address);
                    }
                    match received.body {
                        Some(FromController::Delta(delta)) => {
                            let answer = self.on_delta(member, delta).await?;
                            retry_at = match answer {
                                Answer::Accepted => None,
                                Answer::Refused => Some(Instant::now() + RETRY_REFUSED_AFTER),
                                Answer::OutOfStep => return Ok(Ended::OutOfStep),
                            };
                        }
                        Some(FromController::Welcome(welcome)) => {
                            self.clock = Clock::told(welcome.clock);
                            member.clock(&self.clock);
                            member.controllers(welcome.addresses).await;
                            renew_at = self.renewal(jitter)?;
                        }
                        Some(FromController::Check(check)) => self.check(member, check).await?,
                        Some(FromController::Watch(watch)) => member.watch(watch.routes),
                        Some(FromController::Shares(it)) => member.shares(it),
                        Some(FromController::RotateKey(_)) => self.tell_key(member).await?,
                        Some(FromController::Removed(it)) => return Ok(Ended::Removed(it.reason)),
                        // A newer controller says something that this agent doesn't know.
                        None => tracing::debug!("ignored a message of an unknown kind"),
                    }
                }
                () = until(retry_at) => return Ok(Ended::Refused),
                told = changes.changed() => {
                    anyhow::ensure!(told, "The connection to the kernel's netlink was lost");
                    self.tell_endpoints(member).await?;
                }
                _ = report.tick() => self.report(member).await?,
                () = until(Some(renew_at)) => {
                    member.clock(&self.clock);
                    if self.renew_if_due(member, jitter).await? {
                        return Ok(Ended::Renewed);
                    }
                    renew_at = self.renewal(jitter)?;
                }
            }
        }
    }

    async fn on_delta(
        &mut self,
        member: &mut impl Member,
        delta: v1::Delta,
    ) -> anyhow::Result<Answer> {
        let revision = delta.revision;
        let next = match member.resources().with(delta) {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "asking the controller for everything");
                return Ok(Answer::OutOfStep);
            }
        };
        // A controller greets a returning agent with what it has: nothing to do then.
        let unchanged = next.revision() != 0 && next.is_same_as(member.resources());
        let switched = if unchanged { Ok(Vec::new()) } else { member.switch(next).await };
        let (answer, body) = match switched {
            Ok(warnings) => {
                (Answer::Accepted, FromAgent::Accepted(v1::Accepted { revision, warnings }))
            }
            Err(reason) => {
                tracing::warn!(revision, reason, "refused a revision");
                (Answer::Refused, FromAgent::Refused(v1::Refused { revision, reason }))
            }
        };
        // Before its answer, which an operator may be waiting for: what it mended isn't a problem now.
        self.tell_problems(member).await?;
        self.outgoing.send(message(body)).await?;
        Ok(answer)
    }

    /// Answers whether this host could work by other addresses. Those that it doesn't understand
    /// clash with nothing: the revision itself will be refused.
    async fn check(&self, member: &impl Member, check: v1::Check) -> anyhow::Result<()> {
        let prefixes: Vec<IpNet> = check.prefixes.iter().filter_map(|it| it.parse().ok()).collect();
        let clash = member.clash(&prefixes).await;
        let checked = v1::Checked { number: check.number, clash };
        self.outgoing.send(message(FromAgent::Checked(checked))).await?;
        Ok(())
    }

    /// Without an answer the controller asks again, on the next stream.
    async fn tell_key(&self, member: &mut impl Member) -> anyhow::Result<()> {
        match member.new_key().await {
            Ok(PublicKey(key)) => {
                let key = v1::TunnelKey { public_key: key.to_vec() };
                self.outgoing.send(message(FromAgent::TunnelKey(key))).await?;
            }
            Err(error) => tracing::error!("couldn't make a new tunnel key: {error:#}"),
        }
        Ok(())
    }

    async fn tell_endpoints(&mut self, member: &impl Member) -> anyhow::Result<()> {
        let endpoints = member.endpoints().await;
        if endpoints != self.endpoints {
            tracing::info!("this host's addresses changed");
            self.outgoing.send(message(FromAgent::Endpoints(to_message(&endpoints)))).await?;
            self.endpoints = endpoints;
        }
        Ok(())
    }

    async fn report(&mut self, member: &mut impl Member) -> anyhow::Result<()> {
        self.tell_problems(member).await?;
        let report = member.report();
        if report != v1::Report::default() {
            self.outgoing.send(message(FromAgent::Report(report))).await?;
        }
        Ok(())
    }

    /// The first list of a session is told also when it is empty: the controller may know another.
    async fn tell_problems(&mut self, member: &impl Member) -> anyhow::Result<()> {
        let problems = member.problems();
        if self.problems.as_ref() != Some(&problems) {
            self.problems = Some(problems.clone());
            self.outgoing.send(message(FromAgent::Problems(v1::Problems { problems }))).await?;
        }
        Ok(())
    }

    /// When to look at the certificate again, and at this host's clock, which can be set: hence not
    /// only once.
    fn renewal(&mut self, jitter: f64) -> anyhow::Result<Instant> {
        let mut wait = self.ours.tls.validity()?.renewal_in(&self.clock, jitter);
        if wait.is_zero() {
            wait = self.renewal_backoff.wait(backoff::random());
        }
        Ok(Instant::now() + wait.clamp(CERTIFICATE_CHECK_FIRST, CERTIFICATE_CHECK_EVERY))
    }

    /// Whether there is a new certificate. A failure is no reason to end the session: the present
    /// certificate still has half of its life before it, and even afterwards the session goes on.
    async fn renew_if_due(&self, member: &mut impl Member, jitter: f64) -> anyhow::Result<bool> {
        let validity = self.ours.tls.validity()?;
        if !validity.renewal_in(&self.clock, jitter).is_zero() {
            return Ok(false);
        }
        match self.renew().await {
            Ok(tls) => {
                member.renewed(tls).await;
                tracing::info!("renewed this host's certificate");
                Ok(true)
            }
            Err(error) => {
                tracing::warn!("couldn't renew this host's certificate: {error:#}");
                Ok(false)
            }
        }
    }

    async fn renew(&self) -> anyhow::Result<TlsIdentity> {
        let key = TlsKey::generate()?;
        let request = v1::RenewRequest { certificate_request: key.request()? };
        let mut client = self.client.clone();
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.renew(request))
            .await
            .context("no answer within 10 s")?
            .map_err(said)?;
        let ca = blake3::hash(&self.ours.tls.ca);
        key.with_chain(answer.into_inner().chain, &ca, &self.ours.member)
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn message(body: FromAgent) -> v1::AgentMessage {
    v1::AgentMessage { body: Some(body) }
}

fn to_message(endpoints: &[SocketAddr]) -> v1::Endpoints {
    v1::Endpoints { addresses: endpoints.iter().map(ToString::to_string).collect() }
}

/// The controller's messages are sentences for people; tonic's own errors need their causes.
pub(crate) fn said(status: tonic::Status) -> anyhow::Error {
    match std::error::Error::source(&status) {
        Some(source) => anyhow!("{}", tls::reason(source)),
        None => anyhow::Error::new(Said(status)),
    }
}

/// A controller's word.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message())]
struct Said(tonic::Status);

/// A session that ended because another machine has this host's place.
fn twin(error: anyhow::Error) -> anyhow::Result<Ended> {
    match error.downcast_ref() {
        Some(Said(status)) if status.code() == Code::AlreadyExists => {
            Ok(Ended::Twin(status.message().to_owned()))
        }
        Some(_) | None => Err(error),
    }
}
