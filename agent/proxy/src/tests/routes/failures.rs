//! Retries, time limits and ejection on routes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use isthmus_model::BalancePolicy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::routed::*;
use super::{answer, ask, failing, get, named, post};

#[tokio::test]
async fn a_failing_workload_is_hidden_by_retries_and_ejected() {
    let mut backends = Backends::new();
    backends.balance.policy = BalancePolicy::RoundRobin;
    let good = named(&backends, API_2, "good").await;
    let bad = failing(&backends, API_3, 503).await;
    let proxy = backends.proxy("[[route.api]]\nretry = { attempts = 1, backoff = \"1ms\" }");
    for _ in 0..200 {
        assert_eq!(get(&proxy, "/").await, (StatusCode::OK, "good".to_owned()));
    }
    assert_eq!(good.seen().len(), 200);
    // Five until it is ejected, and perhaps a probe.
    assert!((5..10).contains(&bad.seen().len()), "{}", bad.seen().len());
    let metrics = proxy.metrics.snapshot();
    assert_eq!(metrics.retries, bad.seen().len() as u64);
    let series = &metrics.series[0];
    let labels = &series.labels;
    assert_eq!((labels.source.as_str(), labels.service.as_str()), ("service:client", "api"));
    assert_eq!((labels.route.as_str(), labels.backend.as_str()), ("api-1", "api"));
    assert_eq!((series.latency.count(), series.successes), (200, 200));
    assert_eq!(series.retries, bad.seen().len() as u64);
    assert_eq!(metrics.ejections, [("api".to_owned(), 1)]);
}

#[tokio::test]
async fn a_workload_that_refuses_fast_attracts_nothing() {
    let mut backends = Backends::new();
    let good = backends
        .start(API_2, |_| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            answer(200, "good")
        })
        .await;
    let busy = failing(&backends, API_3, 429).await;
    let proxy = backends.proxy("");
    for _ in 0..100 {
        get(&proxy, "/").await;
    }
    assert!(busy.seen().len() < 10, "{} of 100", busy.seen().len());
    assert!(good.seen().len() > 90);
}

#[tokio::test]
async fn what_was_not_sent_is_tried_elsewhere_whatever_the_method() {
    let mut backends = Backends::new();
    backends.balance.policy = BalancePolicy::RoundRobin;
    let good = named(&backends, API_2, "good").await;
    let proxy = backends.proxy("");
    for _ in 0..20 {
        assert_eq!(ask(&proxy, post("data")).await, (StatusCode::OK, "good".to_owned()));
    }
    assert_eq!(good.seen().len(), 20);
    assert!(proxy.metrics.snapshot().retries > 0, "the other workload doesn't listen");
}

#[tokio::test]
async fn what_may_have_been_done_is_not_repeated_unless_the_route_says_so() {
    for (more, calls) in [("", 1), (", non_idempotent = true", 3)] {
        let mut backends = Backends::new();
        let bad = (failing(&backends, API_2, 503).await, failing(&backends, API_3, 503).await);
        let route = format!(
            "[[route.api]]\nretry = {{ attempts = 2, on = [\"5xx\"], backoff = \"1ms\"{more} }}"
        );
        let proxy = backends.proxy(&route);
        let (status, _) = ask(&proxy, post("data")).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(bad.0.seen().len() + bad.1.seen().len(), calls, "{more}");
    }
}

#[tokio::test]
async fn a_small_body_is_repeated_whole_and_a_large_one_never() {
    for (size, status, calls) in [(64 << 10, 200, 2), ((64 << 10) + 1, 500, 1)] {
        let mut backends = Backends::new();
        let count = Arc::new(AtomicUsize::new(0));
        let fails_once = |count: Arc<AtomicUsize>| {
            move |request: Request<hyper::body::Incoming>| {
                let count = Arc::clone(&count);
                async move {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let is_first = count.fetch_add(1, Ordering::Relaxed) == 0;
                    answer(if is_first { 500 } else { 200 }, &body.len().to_string())
                }
            }
        };
        let _api = (
            backends.start(API_2, fails_once(Arc::clone(&count))).await,
            backends.start(API_3, fails_once(Arc::clone(&count))).await,
        );
        let route = "[[route.api]]\nretry = { attempts = 3, on = [\"5xx\"], backoff = \"1ms\", non_idempotent = true }";
        let proxy = backends.proxy(route);
        let got = ask(&proxy, post(vec![b'x'; size])).await;
        assert_eq!(got, (StatusCode::from_u16(status).unwrap(), size.to_string()));
        assert_eq!(count.load(Ordering::Relaxed), calls);
    }
}

#[tokio::test]
async fn a_small_body_that_does_not_come_is_not_waited_for() {
    let mut backends = Backends::new();
    let _api = (named(&backends, API_2, "api").await, named(&backends, API_3, "api").await);
    let proxy = backends.proxy("[[route.api]]\ntimeout = \"50ms\"\nretry = { attempts = 1 }");
    let head = "POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 5\r\nConnection: close\r\n\r\nab";
    let got = proxy.exchange(CALLER, head).await;
    assert!(got.starts_with("HTTP/1.1 408"), "{got}");
}

#[tokio::test]
async fn a_workload_that_hangs_is_given_up_and_another_asked() {
    let mut backends = Backends::new();
    backends.balance.policy = BalancePolicy::RoundRobin;
    let _hanging = TcpListener::bind((API_3, backends.port)).await.unwrap();
    let _good = named(&backends, API_2, "good").await;
    let proxy = backends.proxy(
        "[[route.api]]\ntry_timeout = \"50ms\"\nretry = { attempts = 1, on = [\"reset\"], backoff = \"1ms\" }",
    );
    for _ in 0..20 {
        assert_eq!(get(&proxy, "/").await, (StatusCode::OK, "good".to_owned()));
    }
}

#[tokio::test]
async fn the_whole_exchange_has_a_time_limit() {
    let mut backends = Backends::new();
    let _hanging = (
        TcpListener::bind((API_2, backends.port)).await.unwrap(),
        TcpListener::bind((API_3, backends.port)).await.unwrap(),
    );
    let proxy = backends.proxy(
        "[[route.api]]\ntimeout = \"200ms\"\ntry_timeout = \"50ms\"\n\
         retry = { attempts = 10, on = [\"reset\"], backoff = \"1ms\" }",
    );
    let started = Instant::now();
    assert_eq!(get(&proxy, "/").await.0, StatusCode::GATEWAY_TIMEOUT);
    assert!((190..1000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_workload_that_lets_the_time_limit_pass_is_avoided() {
    let mut backends = Backends::new();
    let _hanging = TcpListener::bind((API_3, backends.port)).await.unwrap();
    let _slower = backends
        .start(API_2, |_| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            answer(200, "good")
        })
        .await;
    let proxy = backends.proxy("[[route.api]]\ntimeout = \"100ms\"");
    let mut late = 0;
    for _ in 0..30 {
        late += usize::from(get(&proxy, "/").await.0 == StatusCode::GATEWAY_TIMEOUT);
    }
    assert!(late <= 5, "{late} of 30 were sent to a workload that answers nothing");
}

#[tokio::test]
async fn an_answer_that_never_ends_is_cut_at_the_time_limit() {
    let mut backends = Backends::new();
    let drip = TcpListener::bind((V2, backends.port)).await.unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = drip.accept().await.unwrap();
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello";
        stream.write_all(head).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await
    });
    let proxy = backends.proxy("[[route.api]]\nto = [{ service = \"v2\" }]\ntimeout = \"100ms\"");
    let got = proxy.exchange(CALLER, "GET / HTTP/1.1\r\nHost: api\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200") && got.ends_with("hello"), "{got}");
}

#[tokio::test]
async fn with_every_workload_down_retries_stay_within_their_budget() {
    let mut backends = Backends::new();
    let bad = (failing(&backends, API_2, 503).await, failing(&backends, API_3, 503).await);
    let proxy = backends.proxy(
        "[[route.api]]\nretry = { attempts = 5, on = [\"5xx\"], budget = 0.1, backoff = \"1ms\" }",
    );
    let started = Instant::now();
    for _ in 0..300 {
        assert_eq!(get(&proxy, "/").await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
    // Ten saved up, a tenth of the requests, and one for each second.
    let most = 300 + 10 + 30 + 1 + started.elapsed().as_secs() as usize;
    let calls = bad.0.seen().len() + bad.1.seen().len();
    assert!((320..=most).contains(&calls), "{calls}, at most {most}");
}
