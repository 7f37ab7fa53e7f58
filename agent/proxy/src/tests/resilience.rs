//! Workloads that are slow, unwell, or about to go.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use isthmus_model::BalancePolicy;
use tokio::net::TcpListener;

use super::routed::*;
use super::support::{Application, Body, Proxy, full, request1, text};

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
