//! Sessions with a controller that plays a script, over real TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use isthmus_proto::v1::sync_server::{self, SyncServer};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};

use super::*;
use crate::identity::tests::identity_by;
use crate::identity::tests::member as member_of_corp;
use crate::tls::tests::{Authority, HostCertificate};

/// What the controller does after Hello: says this, then waits for as many answers as it sent
/// deltas, then says the last word.
#[derive(Clone, Default)]
struct Script {
    deltas: Vec<v1::Delta>,
    last: Option<FromController>,
    /// Instead of all that: refuses the stream at once.
    refuses: Option<Status>,
    /// Likewise, but after Hello.
    ends: Option<Status>,
    welcome: Option<v1::Welcome>,
    /// How often it was asked to renew a certificate.
    renewals: Arc<AtomicUsize>,
    never_renews: bool,
}

struct Controller {
    script: Script,
    authority: Arc<Authority>,
    heard: Arc<Mutex<Vec<FromAgent>>>,
}

#[tonic::async_trait]
impl sync_server::Sync for Controller {
    type StreamStream = ReceiverStream<Result<v1::ControllerMessage, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        if let Some(status) = self.script.refuses.clone() {
            return Err(status);
        }
        let (sender, receiver) = mpsc::channel(8);
        let (script, heard) = (self.script.clone(), Arc::clone(&self.heard));
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            // Until the agent says something else than what is wrong with it.
            let mut next = async || {
                loop {
                    let body = incoming.message().await.ok().flatten().and_then(|it| it.body);
                    heard.lock().extend(body.clone());
                    if !matches!(body, Some(FromAgent::Problems(_))) {
                        break;
                    }
                }
            };
            next().await;
            if let Some(status) = script.ends {
                return sender.send(Err(status)).await.unwrap();
            }
            if let Some(welcome) = script.welcome {
                let body = Some(FromController::Welcome(welcome));
                sender.send(Ok(v1::ControllerMessage { body })).await.unwrap();
            }
            for delta in script.deltas {
                let body = Some(FromController::Delta(delta));
                sender.send(Ok(v1::ControllerMessage { body })).await.unwrap();
                next().await;
            }
            if let Some(last) = script.last {
                let body = Some(last);
                let is_question =
                    matches!(body, Some(FromController::Check(_) | FromController::RotateKey(_)));
                sender.send(Ok(v1::ControllerMessage { body })).await.unwrap();
                if is_question {
                    next().await;
                    return;
                }
                sender.closed().await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::Certificate>, Status> {
        self.script.renewals.fetch_add(1, Ordering::Relaxed);
        if self.script.never_renews {
            return Err(Status::unavailable("the disk is full"));
        }
        let request = request.into_inner().certificate_request;
        let chain = self.authority.sign(&request, &HostCertificate::of(&member_of_corp()));
        Ok(Response::new(v1::Certificate { chain }))
    }

    async fn leave(
        &self,
        _: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveResponse>, Status> {
        Err(Status::unimplemented("nobody leaves in the middle of a session"))
    }
}

/// A host that refuses the revisions it is told to.
#[derive(Default)]
struct Host {
    resources: Resources,
    refuses: Vec<u64>,
    switched: Vec<u64>,
    connected: bool,
    renewed: Option<TlsIdentity>,
    controllers: Vec<String>,
    skewed: bool,
}

impl Member for Host {
    async fn switch(&mut self, resources: Resources) -> Result<Vec<v1::Problem>, String> {
        let revision = resources.revision();
        if self.refuses.contains(&revision) {
            return Err("clashes with a route".to_owned());
        }
        self.switched.push(revision);
        self.resources = resources;
        Ok(Vec::new())
    }

    fn resources(&self) -> &Resources {
        &self.resources
    }

    async fn endpoints(&self) -> Vec<SocketAddr> {
        vec!["192.0.2.7:51820".parse().unwrap()]
    }

    async fn clash(&self, prefixes: &[IpNet]) -> String {
        prefixes.iter().map(|prefix| format!("{prefix} via 192.0.2.1")).collect()
    }

    fn problems(&self) -> Vec<v1::Problem> {
        Vec::new()
    }

    fn report(&mut self) -> v1::Report {
        v1::Report::default()
    }

    fn watch(&mut self, _: Vec<String>) {}

    fn shares(&mut self, _: v1::Shares) {}

    fn connected(&mut self, _: &str) {
        self.connected = true;
    }

    async fn new_key(&mut self) -> anyhow::Result<PublicKey> {
        Ok(PublicKey([9; 32]))
    }

    async fn renewed(&mut self, tls: TlsIdentity) {
        self.renewed = Some(tls);
    }

    fn instance(&self) -> Vec<u8> {
        vec![7]
    }

    fn clock(&mut self, clock: &Clock) {
        self.skewed = clock.problem().is_some();
    }

    async fn controllers(&mut self, addresses: Vec<String>) {
        self.controllers = addresses;
    }

    fn device(&self) -> Option<u32> {
        None
    }
}

struct Played {
    ended: anyhow::Result<Ended>,
    /// All but the lists of problems.
    heard: Vec<FromAgent>,
    /// The message right after the greeting.
    before_answer: Option<FromAgent>,
}

async fn play(script: Script, host: &mut Host, from_scratch: bool) -> Played {
    play_with(script, host, from_scratch, HostCertificate::of(&member_of_corp())).await
}

async fn play_with(
    script: Script,
    host: &mut Host,
    from_scratch: bool,
    certificate: HostCertificate,
) -> Played {
    let authority = Arc::new(Authority::new());
    let mut identity = identity_by(&authority, &certificate);
    identity.tls.obtained -= certificate.age;
    let heard = Arc::default();
    let controller =
        Controller { script, authority: Arc::clone(&authority), heard: Arc::clone(&heard) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = authority.server("controller.corp.example");
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = TlsAcceptor::from(config).accept(stream).await.unwrap();
        let service = TowerToHyperService::new(SyncServer::new(controller));
        let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(http2.serve_connection(TokioIo::new(stream), service).await);
    });
    let ended = session(&address, &identity.credentials(), host, from_scratch).await;
    server.abort();
    let mut heard = std::mem::take(&mut *heard.lock());
    let before_answer = heard.get(1).cloned();
    heard.retain(|body| !matches!(body, FromAgent::Problems(_)));
    Played { ended, heard, before_answer }
}

fn delta(revision: u64, base: u64) -> v1::Delta {
    let policy = v1::Resource { key: format!("rule/{revision}"), body: None };
    v1::Delta { revision, base, changed: vec![policy], gone: Vec::new(), epoch: 0 }
}

fn removed() -> Option<FromController> {
    Some(FromController::Removed(v1::Removed { reason: "sold".to_owned() }))
}

fn hello_revision(heard: &[FromAgent]) -> Option<u64> {
    heard.iter().find_map(|body| match body {
        FromAgent::Hello(hello) => Some(hello.revision),
        FromAgent::Accepted(_)
        | FromAgent::Refused(_)
        | FromAgent::Endpoints(_)
        | FromAgent::Checked(_)
        | FromAgent::Report(_)
        | FromAgent::TunnelKey(_)
        | FromAgent::Problems(_) => None,
    })
}

#[tokio::test]
async fn deltas_are_taken_over_in_order_and_acknowledged_each() {
    let script =
        Script { deltas: vec![delta(3, 0), delta(5, 3)], last: removed(), ..Script::default() };
    let mut host = Host::default();
    let played = play(script, &mut host, false).await;
    assert_eq!(played.ended.unwrap(), Ended::Removed("sold".to_owned()));
    assert!(host.connected);
    assert_eq!(host.switched, [3, 5]);
    let accepted =
        |revision| FromAgent::Accepted(v1::Accepted { revision, ..v1::Accepted::default() });
    assert_eq!(played.heard[1..], [accepted(3), accepted(5)]);
    // The controller may know problems of an earlier life: none are told, too, and before any answer.
    assert_eq!(played.before_answer, Some(FromAgent::Problems(v1::Problems::default())));
    let FromAgent::Hello(hello) = &played.heard[0] else { panic!("{:?}", played.heard) };
    assert_eq!(hello.endpoints.as_ref().unwrap().addresses, ["192.0.2.7:51820"]);
}

#[tokio::test]
async fn a_refused_revision_is_answered_with_the_reason_and_the_next_builds_on_the_old() {
    let script = Script {
        deltas: vec![delta(3, 0), delta(4, 3), delta(5, 3)],
        last: removed(),
        ..Script::default()
    };
    let mut host = Host { refuses: vec![4], ..Host::default() };
    let played = play(script, &mut host, false).await;
    assert_eq!(host.switched, [3, 5]);
    let reason = "clashes with a route".to_owned();
    assert_eq!(played.heard[2], FromAgent::Refused(v1::Refused { revision: 4, reason }));
}

#[tokio::test]
async fn a_delta_to_another_base_ends_the_session_and_the_next_asks_for_everything() {
    let mut host = Host::default();
    let script = Script { deltas: vec![delta(3, 0), delta(9, 8)], ..Script::default() };
    let played = play(script, &mut host, false).await;
    assert_eq!(played.ended.unwrap(), Ended::OutOfStep);
    assert_eq!(hello_revision(&played.heard), Some(0));

    let again = Script { deltas: vec![delta(9, 0)], last: removed(), ..Script::default() };
    let played = play(again, &mut host, true).await;
    assert_eq!(hello_revision(&played.heard), Some(0));
    assert_eq!(host.switched, [3, 9]);
}

#[tokio::test]
async fn a_host_that_is_asked_for_another_key_says_its_public_half() {
    let last = Some(FromController::RotateKey(v1::RotateKey {}));
    let played = play(Script { last, ..Script::default() }, &mut Host::default(), false).await;
    let key = v1::TunnelKey { public_key: vec![9; 32] };
    assert_eq!(played.heard[1..], [FromAgent::TunnelKey(key)]);
}

#[tokio::test]
async fn a_host_says_which_of_its_routes_is_in_the_way_of_other_addresses() {
    let check = v1::Check { number: 7, prefixes: vec!["10.0.0.0/8".to_owned(), "x".to_owned()] };
    let script =
        Script { deltas: vec![], last: Some(FromController::Check(check)), ..Script::default() };
    let played = play(script, &mut Host::default(), false).await;
    let clash = "10.0.0.0/8 via 192.0.2.1".to_owned();
    assert_eq!(played.heard[1], FromAgent::Checked(v1::Checked { number: 7, clash }));
}

#[tokio::test]
async fn a_returning_host_says_what_it_has_and_takes_nothing_twice() {
    let mut host = Host::default();
    play(
        Script { deltas: vec![delta(3, 0)], last: removed(), ..Script::default() },
        &mut host,
        false,
    )
    .await;
    let same = v1::Delta { revision: 3, base: 3, changed: Vec::new(), gone: Vec::new(), epoch: 0 };
    let played =
        play(Script { deltas: vec![same], last: removed(), ..Script::default() }, &mut host, false)
            .await;
    assert_eq!(hello_revision(&played.heard), Some(3));
    assert_eq!(
        played.heard[1],
        FromAgent::Accepted(v1::Accepted { revision: 3, ..v1::Accepted::default() })
    );
    assert_eq!(host.switched, [3]);
}

#[tokio::test]
async fn a_stream_that_just_ends_is_an_error_to_recover_from() {
    let played = play(Script::default(), &mut Host::default(), false).await;
    assert!(played.ended.is_err());
}

#[tokio::test]
async fn a_certificate_past_half_of_its_life_is_renewed() {
    let half_over = HostCertificate {
        age: Duration::from_secs(60),
        left: Duration::from_secs(30),
        ..HostCertificate::of(&member_of_corp())
    };
    let mut host = Host::default();
    // After its last word the controller keeps the stream open.
    let last = Some(FromController::Delta(delta(3, 0)));
    let played = play_with(Script { last, ..Script::default() }, &mut host, false, half_over).await;
    assert_eq!(played.ended.unwrap(), Ended::Renewed);
    let validity = host.renewed.unwrap().validity().unwrap();
    assert!(validity.until > SystemTime::now() + Duration::from_secs(60));
}

#[tokio::test]
async fn a_host_whose_certificate_is_out_of_its_time_renews_it_first() {
    let refuses = Some(Status::unauthenticated("The certificate expired."));
    let mut host = Host::default();
    let expired = HostCertificate {
        age: Duration::from_secs(200),
        left: Duration::ZERO,
        ..HostCertificate::of(&member_of_corp())
    };
    let script = Script { refuses, ..Script::default() };
    let played = play_with(script, &mut host, false, expired).await;
    assert_eq!(played.ended.unwrap(), Ended::Renewed);
    assert!(!host.connected && host.renewed.is_some());
}

#[tokio::test]
async fn a_host_that_can_not_renew_says_both_reasons() {
    let refuses = Some(Status::unauthenticated("The certificate expired."));
    let script = Script { refuses, never_renews: true, ..Script::default() };
    let error = play(script, &mut Host::default(), false).await.ended.unwrap_err();
    assert_eq!(format!("{error:#}"), "The certificate expired.: the disk is full");
}

#[tokio::test]
async fn a_second_machine_is_told_so_and_was_never_connected() {
    let ends = Some(Status::already_exists("Another machine, at 192.0.2.9, …"));
    let mut host = Host::default();
    let played = play(Script { ends, ..Script::default() }, &mut host, false).await;
    assert!(matches!(played.ended.unwrap(), Ended::Twin(why) if why.contains("192.0.2.9")));
    assert!(!host.connected);
    let FromAgent::Hello(hello) = &played.heard[0] else { panic!("{:?}", played.heard) };
    assert_eq!(hello.instance, [7]);
    assert!(hello.clock.abs_diff(Clock::ours().milliseconds()) < 60_000);
}

#[tokio::test]
async fn a_controller_says_its_time_and_its_addresses() {
    let welcome = |ahead: i64| v1::Welcome {
        clock: Clock::ours().milliseconds() - ahead,
        addresses: vec!["192.0.2.2:7443".to_owned()],
    };
    for (ahead, skewed) in [(0, false), (172_800_000, true)] {
        let mut host = Host::default();
        let welcome = Some(welcome(ahead));
        let script = Script { welcome, last: removed(), ..Script::default() };
        let played = play(script, &mut host, false).await;
        assert_eq!(played.ended.unwrap(), Ended::Removed("sold".to_owned()));
        assert_eq!((host.skewed, &*host.controllers), (skewed, &["192.0.2.2:7443".to_owned()][..]));
    }
}

/// The host's clock is two days ahead: by it, every certificate has expired when it comes.
#[tokio::test]
async fn a_host_whose_clock_is_ahead_does_not_renew_a_fresh_certificate() {
    let welcome = Some(v1::Welcome {
        clock: Clock::ours().milliseconds() - 172_800_000,
        addresses: Vec::new(),
    });
    // Good from now on for a day, by the controller's clock.
    let mut fresh = HostCertificate::of(&member_of_corp());
    fresh.moved = -172_800;
    fresh.left = Duration::from_secs(86_400);
    let script =
        Script { welcome, last: Some(FromController::Delta(delta(3, 0))), ..Script::default() };
    let renewals = Arc::clone(&script.renewals);
    let mut host = Host::default();
    let playing = play_with(script, &mut host, false, fresh);
    assert!(tokio::time::timeout(Duration::from_secs(4), playing).await.is_err(), "it goes on");
    assert_eq!(renewals.load(Ordering::Relaxed), 0);
}

/// The session outlives its certificate where the controller can't give another.
#[tokio::test]
async fn failed_renewals_become_rarer() {
    let expired = HostCertificate {
        age: Duration::from_secs(200),
        left: Duration::ZERO,
        ..HostCertificate::of(&member_of_corp())
    };
    let last = Some(FromController::Delta(delta(3, 0)));
    let script = Script { last, never_renews: true, ..Script::default() };
    let renewals = Arc::clone(&script.renewals);
    let mut host = Host::default();
    let playing = play_with(script, &mut host, false, expired);
    assert!(tokio::time::timeout(Duration::from_secs(12), playing).await.is_err(), "it goes on");
    let asked = renewals.load(Ordering::Relaxed);
    assert!((2..=8).contains(&asked), "asked {asked} times in 12 s");
}
