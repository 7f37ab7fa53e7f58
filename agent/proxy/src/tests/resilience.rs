//! Workloads that are slow, unwell, or about to go.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use isthmus_model::{BalancePolicy, HashKey, HealthCheck, HealthProbe, HostId};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::routed::*;
use super::support::{Application, Body, Proxy, SOON, full, read_to_end, request1, text};
use crate::config::limits::Limits;

/// Answers so, with this header field.
async fn marked(
    backends: &Backends,
    address: IpAddr,
    (status, name): (u16, &'static str),
) -> Application {
    let answer = move |_| async move {
        let marked = Response::builder().status(status).header(name, "true");
        marked.body(full("here".to_owned())).unwrap()
    };
    backends.start(address, answer).await
}

async fn ask(proxy: &Proxy, method: &'static str) -> Response<hyper::body::Incoming> {
    let mut client = proxy.http1(CALLER).await;
    let request: Request<Body> = request1(method, "/");
    client.send_request(request).await.unwrap()
}

fn in_turn() -> Backends {
    let mut backends = Backends::new();
    backends.balance.policy = BalancePolicy::RoundRobin;
    backends
}

#[tokio::test]
async fn a_hedge_asks_another_workload_and_its_answer_counts() {
    let mut backends = in_turn();
    let _hanging = TcpListener::bind((API_3, backends.port)).await.unwrap();
    let good = marked(&backends, API_2, (200, "x-any")).await;
    let proxy = backends
        .proxy("[[route.api]]\nhedge = { after = \"20ms\" }\nretry = { attempts = 1, budget = 1 }");
    let began = Instant::now();
    for _ in 0..10 {
        let answer = ask(&proxy, "GET").await;
        assert_eq!((answer.status(), text(answer).await.as_str()), (StatusCode::OK, "here"));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(good.seen().len(), 10);
    let hedges = proxy.metrics.snapshot().hedges;
    assert!((1..=10).contains(&hedges), "{hedges}");
}

#[tokio::test]
async fn what_a_proxy_refused_for_an_unhealthy_workload_goes_elsewhere_whatever_the_method() {
    let mut backends = in_turn();
    let good = marked(&backends, API_2, (200, "x-any")).await;
    let unhealthy = marked(&backends, API_3, (503, "x-isthmus-unhealthy")).await;
    let proxy = backends.proxy("");
    for _ in 0..20 {
        assert_eq!(ask(&proxy, "POST").await.status(), StatusCode::OK);
    }
    assert_eq!(good.seen().len(), 20);
    assert!((1..=3).contains(&unhealthy.seen().len()), "{}", unhealthy.seen().len());
    assert!(proxy.metrics.endpoints().iter().any(|it| it.host.0 == 3 && it.unhealthy));
}

#[tokio::test]
async fn a_host_that_says_it_leaves_gets_no_more_and_marks_stay_inside() {
    let mut backends = in_turn();
    let stays = marked(&backends, API_2, (200, "x-any")).await;
    let leaves = marked(&backends, API_3, (200, "x-isthmus-leaving")).await;
    let proxy = backends.proxy("");
    for _ in 0..20 {
        let answer = ask(&proxy, "GET").await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(!answer.headers().contains_key("x-isthmus-leaving"));
    }
    assert!((1..=3).contains(&leaves.seen().len()), "{}", leaves.seen().len());
    assert!(stays.seen().len() >= 17);
    assert!(stays.seen().iter().all(|head| !head.headers.contains_key("x-isthmus-panic")));
}

#[tokio::test]
async fn a_host_that_does_not_answer_gets_no_requests_until_it_does() {
    let mut backends = in_turn();
    let good = marked(&backends, API_2, (200, "x-any")).await;
    let silent = marked(&backends, API_3, (200, "x-any")).await;
    let proxy = backends.proxy("");
    proxy.metrics.silence().begin(HostId(3), Instant::now());
    for _ in 0..10 {
        assert_eq!(ask(&proxy, "POST").await.status(), StatusCode::OK);
    }
    assert_eq!((good.seen().len(), silent.seen().len()), (10, 0));
    proxy.metrics.silence().end(HostId(3));
    for _ in 0..10 {
        assert_eq!(ask(&proxy, "POST").await.status(), StatusCode::OK);
    }
    assert_eq!((good.seen().len(), silent.seen().len()), (15, 5));
}

#[tokio::test]
async fn what_is_asked_of_a_host_that_falls_silent_is_answered_soon_with_the_reason() {
    let mut backends = in_turn();
    let listener = TcpListener::bind((API_3, backends.port)).await.unwrap();
    let view = backends.view_on(
        "[[allow]]\nname = \"all\"\nfrom = \"service:client\"\nto = \"service:*\"\n",
        &[API_3],
    );
    let proxy = Proxy::serve(Limits::default(), API, backends.port, view);
    let began = Instant::now();
    let (answer, _open) = tokio::join!(ask(&proxy, "GET"), async {
        let accepted = listener.accept().await.unwrap();
        proxy.metrics.silence().begin(HostId(3), Instant::now());
        accepted
    });
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let said = text(answer).await;
    assert!(said.starts_with("host c doesn't answer since 0 s"), "{said}");
    // The next one, too, while it is silent.
    let answer = ask(&proxy, "GET").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_workload_that_is_about_to_go_takes_what_nobody_else_can() {
    let key = || HashKey::Source;
    let about_to_leave = |policy: &BalancePolicy| {
        let mut backends = Backends::new();
        backends.balance.policy = policy.clone();
        backends.leaving = [HostId(3)].into();
        backends
    };
    for policy in [
        BalancePolicy::RoundRobin,
        BalancePolicy::PeakEwma,
        BalancePolicy::RingHash(key()),
        BalancePolicy::Maglev(key()),
    ] {
        let mut backends = about_to_leave(&policy);
        let stays = marked(&backends, API_2, (200, "x-any")).await;
        let leaves = marked(&backends, API_3, (200, "x-any")).await;
        let proxy = backends.proxy("");
        for _ in 0..10 {
            assert_eq!(ask(&proxy, "GET").await.status(), StatusCode::OK);
        }
        assert_eq!((stays.seen().len(), leaves.seen().len()), (10, 0));
        assert!(proxy.metrics.endpoints().iter().any(|it| it.host.0 == 3 && it.leaving));

        // The one who stays isn't there yet.
        let mut backends = about_to_leave(&policy);
        let leaves = marked(&backends, API_3, (200, "x-any")).await;
        let proxy = backends.proxy("");
        for _ in 0..3 {
            assert_eq!(ask(&proxy, "POST").await.status(), StatusCode::OK);
        }
        assert_eq!(leaves.seen().len(), 3);
    }
}

#[tokio::test]
async fn where_too_few_are_healthy_all_are_used_in_spite_of_their_checks() {
    let mut backends = in_turn();
    let one = marked(&backends, API_2, (503, "x-isthmus-unhealthy")).await;
    let two = marked(&backends, API_3, (503, "x-isthmus-unhealthy")).await;
    let proxy = backends.proxy("");
    let _ = ask(&proxy, "GET").await;
    let _ = ask(&proxy, "GET").await;
    let seen = [one.seen(), two.seen()].concat();
    let panics = |head: &http::request::Parts| head.headers.contains_key("x-isthmus-panic");
    assert!(seen.iter().any(panics), "{seen:?}");
}

#[tokio::test]
async fn the_last_one_that_may_be_asked_is_asked_in_spite_of_its_check() {
    let mut backends = in_turn();
    let answer = |request: Request<hyper::body::Incoming>| async move {
        if request.headers().contains_key("x-isthmus-panic") {
            return Response::new(full("here".to_owned()));
        }
        let refusal = Response::builder().status(503).header("x-isthmus-unhealthy", "true");
        refusal.body(full(String::new())).unwrap()
    };
    let one = backends.start(API_2, answer).await;
    let two = backends.start(API_3, answer).await;
    let proxy = backends
        .proxy("[[route.api]]\nretry = { attempts = 1, on = [\"connect-failure\"], budget = 1 }");
    assert_eq!(ask(&proxy, "POST").await.status(), StatusCode::OK);
    assert_eq!((one.seen().len(), two.seen().len()), (1, 1));
}

#[tokio::test]
async fn a_request_that_found_a_workload_still_failing_is_asked_elsewhere() {
    let mut backends = in_turn();
    let outlier = &mut backends.balance.outlier;
    outlier.consecutive_5xx = 1;
    (outlier.base_ejection_time, outlier.max_ejection_time) =
        (Duration::from_millis(20), Duration::from_millis(20));
    let _good = marked(&backends, API_2, (200, "x-any")).await;
    let bad = marked(&backends, API_3, (500, "x-any")).await;
    let proxy = backends.proxy("");
    let is_out = || proxy.metrics.endpoints().iter().any(|it| it.ejected);
    while !is_out() {
        let _ = ask(&proxy, "GET").await;
    }
    let before = bad.seen().len();
    let asking = timeout(SOON, async {
        while bad.seen().len() < before + 3 {
            assert_eq!(ask(&proxy, "GET").await.status(), StatusCode::OK);
        }
    });
    asking.await.expect("it is probed");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_nobodys_failure_but_its_callers() {
    let mut backends = in_turn();
    let read = |request: Request<hyper::body::Incoming>| async {
        let _ = request.into_body().collect().await;
        Response::new(full("here"))
    };
    let _two = backends.start(API_2, read).await;
    let _three = backends.start(API_3, read).await;
    let proxy = backends.proxy("");
    for _ in 0..20 {
        let mut caller = proxy.connect(CALLER).await;
        let part = "POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 10\r\n\r\nabc";
        caller.write_all(part.as_bytes()).await.unwrap();
        caller.shutdown().await.unwrap();
        let got = read_to_end(&mut caller).await;
        assert!(got.starts_with("HTTP/1.1 400") && got.contains("the body broke off"), "{got}");
    }
    assert_eq!(proxy.metrics.snapshot().ejections, []);
    assert!(proxy.metrics.endpoints().iter().all(|it| !it.ejected && it.under_way == 0));
}

#[tokio::test]
async fn connections_and_those_who_wait_for_one_are_as_many_as_the_breaker_says() {
    const ALLOW: &str = "[[allow]]\nname = \"all\"\nfrom = \"service:client\"\nto = \"service:*\"";
    let mut backends = Backends::new();
    backends.balance.breaker.max_connections = 1;
    backends.balance.breaker.max_pending_requests = 2;
    let (go, gone) = watch::channel(false);
    let slow = move |_| {
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|gone| *gone).await.unwrap();
            Response::new(full("here"))
        }
    };
    let slow = backends.start(API_2, slow).await;
    let view = backends.view_on(ALLOW, &[API_2]);
    let proxy = Proxy::serve(Limits::default(), API, backends.port, view);
    let (answers, mut answered) = mpsc::unbounded_channel();
    let ask = async || {
        let (mut client, answers) = (proxy.http1(CALLER).await, answers.clone());
        tokio::spawn(async move {
            let request: Request<Body> = request1("GET", "/");
            answers.send(client.send_request(request).await.unwrap()).unwrap();
        });
    };
    ask().await;
    let began = timeout(SOON, async {
        while slow.seen().is_empty() {
            tokio::task::yield_now().await;
        }
    });
    began.await.unwrap();
    for _ in 0..3 {
        ask().await;
    }
    let refused = timeout(SOON, answered.recv()).await.unwrap().unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["x-isthmus-overloaded"], "max_pending_requests");
    go.send_replace(true);
    for _ in 0..3 {
        let answer = timeout(SOON, answered.recv()).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(text(answer).await, "here");
    }
    let seen = slow.seen();
    let peers = seen.iter().filter_map(|head| head.extensions.get::<std::net::SocketAddr>());
    let peers: std::collections::BTreeSet<_> = peers.collect();
    assert_eq!((seen.len(), peers.len()), (3, 1));
    let overflows = proxy.metrics.snapshot().overflows;
    assert!(overflows.contains(&("max_pending_requests", 1)), "{overflows:?}");
    // Nobody was to blame.
    assert!(proxy.metrics.endpoints().iter().all(|it| !it.ejected));
}

/// Answers with what it got, or that it can't.
async fn echo(backends: &Backends, address: IpAddr, status: u16) -> Application {
    let answer = move |request: Request<hyper::body::Incoming>| async move {
        let body = request.into_body().collect().await.unwrap();
        let check = body.trailers().and_then(|trailers| trailers.get("x-check").cloned());
        let text = format!("{} {check:?}", body.to_bytes().len());
        Response::builder().status(status).body(full(text)).unwrap()
    };
    backends.start(address, answer).await
}

/// A request whose length nobody knows beforehand.
fn chunked(pieces: usize) -> String {
    let piece = "400\r\n".to_owned() + &"x".repeat(1024) + "\r\n";
    "POST / HTTP/1.1\r\nHost: api\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        .to_owned()
        + &piece.repeat(pieces)
        + "0\r\nx-check: yes\r\n\r\n"
}

#[tokio::test]
async fn a_small_body_of_unknown_length_can_be_sent_again_whole() {
    let mut backends = in_turn();
    backends.balance.outlier.consecutive_5xx = 0;
    let _good = echo(&backends, API_2, 200).await;
    let bad = echo(&backends, API_3, 503).await;
    let proxy = backends.proxy(
        "[[route.api]]\nretry = { attempts = 1, on = [\"503\"], budget = 1, non_idempotent = true }",
    );
    for _ in 0..4 {
        let got = proxy.exchange(CALLER, chunked(30)).await;
        assert!(got.starts_with("HTTP/1.1 200") && got.contains("30720 Some(\"yes\")"), "{got}");
    }
    assert!(!bad.seen().is_empty());
    // More than is kept goes once.
    let both =
        [proxy.exchange(CALLER, chunked(80)).await, proxy.exchange(CALLER, chunked(80)).await];
    assert!(both.iter().any(|got| got.starts_with("HTTP/1.1 503")), "{both:?}");
    assert!(both.iter().all(|got| got.contains("81920 Some(\"yes\")")), "{both:?}");
}

#[tokio::test]
async fn what_an_unhealthy_workload_did_not_look_at_is_sent_to_another_with_its_body() {
    let mut backends = in_turn();
    backends.balance.health = Some(HealthCheck::new(HealthProbe::Tcp));
    backends.balance.outlier.base_ejection_time = Duration::from_millis(1);
    backends.balance.outlier.max_ejection_time = Duration::from_millis(1);
    let _good = echo(&backends, API_2, 200).await;
    let unhealthy = marked(&backends, API_3, (503, "x-isthmus-unhealthy")).await;
    let proxy = backends.proxy("");
    let asking = timeout(SOON, async {
        while unhealthy.seen().len() < 5 {
            let got = proxy.exchange(CALLER, chunked(3)).await;
            assert!(got.starts_with("HTTP/1.1 200") && got.contains("3072 Some"), "{got}");
        }
    });
    asking.await.expect("it is asked now and then");
}
