//! The client's side: where requests go, as whom, and what happens when that fails.

mod failures;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use isthmus_model::{BalancePolicy, HashKey, PathMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::routed::*;
use super::support::{Application, Body, Proxy, SOON, full, read_until, request, request1, text};
use crate::config::limits::Limits;

/// Sends a request on a connection of its own.
async fn ask(proxy: &Proxy, request: Request<Body>) -> (StatusCode, String) {
    let mut client = proxy.http1(CALLER).await;
    let answer = client.send_request(request).await.unwrap();
    (answer.status(), text(answer).await)
}

async fn get(proxy: &Proxy, path: &str) -> (StatusCode, String) {
    ask(proxy, request1("GET", path)).await
}

fn post(body: impl Into<bytes::Bytes>) -> Request<Body> {
    let request = Request::builder().method("POST").uri("/");
    request.header("host", "api").body(full(body)).unwrap()
}

fn answer(status: u16, text: &str) -> Response<Body> {
    Response::builder().status(status).body(full(text.to_owned())).unwrap()
}

/// Says who it is.
async fn named(backends: &Backends, address: std::net::IpAddr, name: &'static str) -> Application {
    backends.start(address, move |_| async move { answer(200, name) }).await
}

/// Fails in the same way each time.
async fn failing(backends: &Backends, address: std::net::IpAddr, status: u16) -> Application {
    backends.start(address, move |_| async move { answer(status, "bad") }).await
}

#[tokio::test]
async fn each_way_to_write_a_host_takes_its_route() {
    let mut backends = Backends::new();
    let v2 = named(&backends, V2, "v2").await;
    let _api = named(&backends, API_2, "api").await;
    let view = backends.view_on(
        "[[route.api]]\nmatch = { host = [\"two.example\", \"*.two.example\"] }\nto = [{ service = \"v2\" }]\n\
         [[allow]]\nname = \"all\"\nfrom = \"service:client\"\nto = \"service:*\"\n",
        &[API_2],
    );
    let proxy = Proxy::serve(Limits::default(), API, backends.port, view);
    for (host, to) in [
        ("two.example", "v2"),
        ("Two.Example.", "v2"),
        ("two.example.:80", "v2"),
        ("a.TWO.example.", "v2"),
        ("other.example", "api"),
    ] {
        let request = Request::get("/").header("host", host).body(full("")).unwrap();
        assert_eq!(ask(&proxy, request).await, (StatusCode::OK, to.to_owned()), "{host}");
    }
    let hosts: Vec<_> = v2.seen().iter().map(|head| head.headers["host"].clone()).collect();
    assert_eq!(hosts, ["two.example", "two.example", "two.example:80", "a.two.example"]);
}

#[tokio::test]
async fn a_request_arrives_as_its_callers_and_claims_nothing() {
    let mut backends = Backends::new();
    let v2 = named(&backends, V2, "v2").await;
    let proxy = backends.proxy(
        "[[route.api]]\nmatch = { path = { prefix = \"/in\" } }\nto = [{ service = \"v2\" }]\n\
         rewrite = { host = \"inner\", prefix = \"/\" }\n\
         request_headers = { set = { x-set = \"1\" }, remove = [\"x-gone\"] }\n\
         response_headers = { add = { x-via = \"mesh\" } }",
    );
    let request = Request::get("/in/a%20b/?q=1").header("host", "API.example:80");
    let request = request.header("x-isthmus-identity", "spiffe://corp.example/ns/prod/sa/root");
    let request = request.header("connection", "x-hop").header("x-hop", "1").header("x-gone", "1");
    let mut client = proxy.http1(CALLER).await;
    let got = client.send_request(request.body(full("")).unwrap()).await.unwrap();
    assert_eq!((got.status(), &got.headers()["x-via"]), (StatusCode::OK, &"mesh".parse().unwrap()));

    let head = &v2.seen()[0];
    assert_eq!((head.uri.to_string().as_str()), "/a%20b/?q=1");
    assert_eq!(head.headers["host"], "inner");
    assert_eq!(head.extensions.get::<SocketAddr>().unwrap().ip(), CLIENT);
    assert_eq!(head.headers["x-set"], "1");
    for name in ["x-isthmus-identity", "x-hop", "x-gone", "x-forwarded-for", "connection"] {
        assert!(!head.headers.contains_key(name), "{name}: {head:?}");
    }
}

#[tokio::test]
async fn requests_of_one_connection_are_shared_out() {
    let mut backends = Backends::new();
    backends.balance.policy = BalancePolicy::RoundRobin;
    let (two, three) = (named(&backends, API_2, "2").await, named(&backends, API_3, "3").await);
    let proxy = backends.proxy("");
    for version in [1, 2] {
        let (mut one, mut many) = (proxy.http1(CALLER).await, proxy.http2(CALLER).await);
        for _ in 0..40 {
            let sent = if version == 1 {
                one.ready().await.unwrap();
                one.send_request(request1("GET", "/")).await
            } else {
                many.send_request(request("GET", "/")).await
            };
            text(sent.unwrap()).await;
        }
    }
    let share = (two.seen().len(), three.seen().len());
    assert_eq!(share, (40, 40));
}

#[tokio::test]
async fn without_a_fitting_route_the_service_itself_is_asked() {
    let mut backends = Backends::new();
    let _api = (named(&backends, API_2, "api").await, named(&backends, API_3, "api").await);
    let _v2 = named(&backends, V2, "v2").await;
    let proxy = backends.proxy(
        "[[route.api]]\nmatch = { header = { x-canary = \"1\" } }\nto = [{ service = \"v2\" }]",
    );
    assert_eq!(get(&proxy, "/").await, (StatusCode::OK, "api".to_owned()));
    let canary = Request::get("/").header("host", "api").header("x-canary", "1");
    let canary = canary.body(full("")).unwrap();
    assert_eq!(ask(&proxy, canary).await, (StatusCode::OK, "v2".to_owned()));
}

#[tokio::test]
async fn a_backends_word_on_paths_counts_on_this_host_too() {
    let mut backends = Backends::new();
    backends.paths = PathMode::AsIs;
    let near = named(&backends, NEAR, "near").await;
    let proxy = backends.proxy("[[route.api]]\nto = [{ service = \"near\" }]");
    assert_eq!(get(&proxy, "/b").await, (StatusCode::OK, "near".to_owned()));
    let (status, said) = get(&proxy, "/a/../b").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
    assert_eq!(near.seen().len(), 1);
}

#[tokio::test]
async fn ambiguous_paths_are_refused_where_routes_compare_paths() {
    let mut backends = Backends::new();
    let api = (named(&backends, API_2, "api").await, named(&backends, API_3, "api").await);
    let proxy = backends.proxy(
        "[[route.api]]\nmatch = { path = { prefix = \"/admin\" } }\ndirect_response = { status = 404 }",
    );
    assert_eq!(get(&proxy, "/%61dmin/x").await.0, StatusCode::NOT_FOUND);
    for path in ["/x/../admin", "/x%2f..%2fadmin", "//admin", "/admin;x", "/%252e"] {
        assert_eq!(get(&proxy, path).await.0, StatusCode::BAD_REQUEST, "{path}");
    }
    assert_eq!(api.0.seen().len() + api.1.seen().len(), 0);
}

#[tokio::test]
async fn what_the_asked_service_forbids_no_route_leads_around() {
    let mut backends = Backends::new();
    let v2 = named(&backends, V2, "v2").await;
    let proxy = backends.proxy_with(
        "[[route.api]]\nto = [{ service = \"v2\" }]\nrewrite = { path = \"/public\" }\n\
         [[allow]]\nname = \"reads\"\nfrom = \"service:client\"\nto = \"service:api\"\n\
         http = [{ method = \"GET\", path = \"/public\" }]\n\
         [[allow]]\nname = \"v2\"\nfrom = \"service:client\"\nto = \"service:v2\"",
    );
    assert_eq!(get(&proxy, "/public").await.0, StatusCode::OK);
    assert_eq!(get(&proxy, "/private").await.0, StatusCode::FORBIDDEN);
    assert_eq!(v2.seen().len(), 1);
}

#[tokio::test]
async fn a_workload_of_the_same_host_is_judged_here() {
    let mut backends = Backends::new();
    let near = named(&backends, NEAR, "near").await;
    let proxy = backends.proxy_with(
        "[[route.api]]\nto = [{ service = \"near\" }]\n\
         [[allow]]\nname = \"api\"\nfrom = \"service:client\"\nto = \"service:api\"\n\
         [[allow]]\nname = \"near\"\nfrom = \"service:client\"\nto = \"service:near\"\n\
         http = [{ method = \"GET\" }]",
    );
    assert_eq!(get(&proxy, "/").await, (StatusCode::OK, "near".to_owned()));
    assert_eq!(ask(&proxy, post("x")).await.0, StatusCode::FORBIDDEN);
    let seen = near.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].headers["x-isthmus-identity"], "spiffe://corp.example/ns/prod/sa/client");
}

#[tokio::test]
async fn who_is_not_of_this_host_is_not_served() {
    let mut backends = Backends::new();
    let proxy = backends.proxy("");
    // Another service's virtual address, a workload's, one of another host, and the host's own.
    for caller in [API, CLIENT, API_2, "127.65.1.0".parse().unwrap()] {
        let got = proxy.exchange(caller, "GET / HTTP/1.1\r\nHost: api\r\n\r\n").await;
        assert_eq!(got, "", "{caller}");
    }
    proxy.metrics_become(|metrics| metrics.refused_connections == 4).await;
}

#[tokio::test]
async fn requests_with_the_same_key_meet_the_same_workload() {
    let by_header = HashKey::Header("x-user".into());
    let policies = [
        BalancePolicy::Maglev(by_header.clone()),
        BalancePolicy::RingHash(by_header),
        BalancePolicy::Maglev(HashKey::Cookie("user".into())),
    ];
    for policy in policies {
        let mut backends = Backends::new();
        backends.balance.policy = policy.clone();
        let _api = (named(&backends, API_2, "2").await, named(&backends, API_3, "3").await);
        let proxy = backends.proxy("");
        let mut by_user = std::collections::BTreeMap::new();
        for number in 0..90 {
            let user = format!("u{}", number % 30);
            let request = Request::get("/").header("host", "api").header("x-user", &user);
            let request = request.header("cookie", format!("a=b; user={user}"));
            let (_, workload) = ask(&proxy, request.body(full("")).unwrap()).await;
            let first = by_user.entry(user).or_insert_with(|| workload.clone());
            assert_eq!(*first, workload, "{policy}");
        }
        let share = by_user.values().filter(|it| *it == "2").count();
        assert!((4..27).contains(&share), "{policy}: {share} of 30");
    }
}

#[tokio::test]
async fn least_request_avoids_who_is_busy() {
    let mut backends = Backends::new();
    backends.balance.policy = BalancePolicy::LeastRequest;
    let _good = named(&backends, API_2, "good").await;
    let _hanging = TcpListener::bind((API_3, backends.port)).await.unwrap();
    let proxy = Arc::new(backends.proxy(""));
    let busy = |address| {
        let endpoints = proxy.metrics.endpoints();
        endpoints.iter().any(|it| it.address == address && it.under_way > 0)
    };
    // Until the one that hangs has a request, which never ends.
    let occupied = async {
        let mut sent = Vec::new();
        while !busy(API_3) {
            let proxy = Arc::clone(&proxy);
            let one = tokio::spawn(async move { get(&proxy, "/").await });
            while !one.is_finished() && !busy(API_3) {
                tokio::task::yield_now().await;
            }
            sent.push(one);
        }
        sent
    };
    let _sent = timeout(SOON, occupied).await.unwrap();
    for _ in 0..20 {
        let quiet = async {
            while busy(API_2) {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, quiet).await.unwrap();
        let answer = timeout(SOON, get(&proxy, "/")).await.unwrap();
        assert_eq!(answer, (StatusCode::OK, "good".to_owned()));
    }
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_the_breaker_lets_pass() {
    let mut backends = Backends::new();
    backends.balance.breaker.max_requests = 2;
    let (entered, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let go = Arc::new(tokio::sync::Semaphore::new(0));
    let slow = {
        let go = Arc::clone(&go);
        move |_: Request<hyper::body::Incoming>| {
            let (entered, go) = (entered.clone(), Arc::clone(&go));
            async move {
                entered.send(()).unwrap();
                go.acquire().await.unwrap().forget();
                answer(200, "slow")
            }
        }
    };
    let _api = (backends.start(API_2, slow.clone()).await, backends.start(API_3, slow).await);
    let proxy = Arc::new(backends.proxy(""));
    let spawn = || {
        let proxy = Arc::clone(&proxy);
        tokio::spawn(async move { get(&proxy, "/").await })
    };
    let waiting = [spawn(), spawn()];
    for _ in 0..2 {
        timeout(SOON, arrivals.recv()).await.unwrap().unwrap();
    }
    let (status, body) = get(&proxy, "/").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.starts_with("too many requests to the service"), "{body}");
    go.add_permits(3);
    for request in waiting {
        assert_eq!(request.await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(get(&proxy, "/").await.0, StatusCode::OK, "there is room again");
}

#[tokio::test]
async fn a_service_without_workloads_is_unavailable() {
    let mut backends = Backends::new();
    let proxy = backends.proxy("");
    let view = backends
        .view_on("[[allow]]\nname = \"all\"\nfrom = \"service:client\"\nto = \"service:*\"\n", &[]);
    proxy.switch(view);
    let (status, body) = get(&proxy, "/").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.starts_with("the service has no workload"), "{body}");
}

#[tokio::test]
async fn faults_answers_and_redirects_are_made_here() {
    let mut backends = Backends::new();
    let proxy = backends.proxy(
        "[[route.api]]\nmatch = { path = \"/abort\" }\nfault = { abort = 418, delay = \"20ms\" }\n\
         [[route.api]]\nmatch = { path = \"/answer\" }\ndirect_response = { status = 410, body = \"gone\" }\n\
         response_headers = { set = { x-a = \"1\" } }\n\
         [[route.api]]\nmatch = { path = { prefix = \"/old\" } }\n\
         redirect = { scheme = \"https\", prefix = \"/new\", status = 308 }",
    );
    let started = Instant::now();
    assert_eq!(get(&proxy, "/abort").await.0, StatusCode::IM_A_TEAPOT);
    assert!(started.elapsed() >= Duration::from_millis(20));
    assert_eq!(get(&proxy, "/answer").await, (StatusCode::GONE, "gone".to_owned()));
    let mut client = proxy.http1(CALLER).await;
    let moved = client.send_request(request1("GET", "/old/x?q")).await.unwrap();
    assert_eq!(moved.status(), StatusCode::PERMANENT_REDIRECT);
    assert_eq!(moved.headers()["location"], "https://web.prod.mesh.internal/new/x?q");
}

#[tokio::test]
async fn a_mirror_gets_copies_and_nobody_waits_for_it() {
    let mut backends = Backends::new();
    let _api = (named(&backends, API_2, "api").await, named(&backends, API_3, "api").await);
    let mirror = failing(&backends, V2, 500).await;
    let proxy = backends.proxy("[[route.api]]\nmirror = [{ service = \"v2\" }]");
    for _ in 0..5 {
        assert_eq!(ask(&proxy, post("data")).await, (StatusCode::OK, "api".to_owned()));
    }
    let copied = async {
        while mirror.seen().len() < 5 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, copied).await.expect("each request is copied");
    assert_eq!(mirror.seen()[0].method, "POST");
}

#[tokio::test]
async fn an_upgrade_passes_to_the_workload_and_back() {
    let mut backends = Backends::new();
    let echo = TcpListener::bind((V2, backends.port)).await.unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = echo.accept().await.unwrap();
        read_until(&mut stream, "\r\n\r\n").await;
        let head =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.write_all(head).await.unwrap();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await
    });
    let proxy = backends.proxy("[[route.api]]\nto = [{ service = \"v2\" }]\ntimeout = \"50ms\"");
    let mut stream = proxy.connect(CALLER).await;
    let request = "GET /chat HTTP/1.1\r\nHost: api\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    tokio::time::sleep(Duration::from_millis(80)).await;
    stream.write_all(b"ping").await.unwrap();
    assert_eq!(read_until(&mut stream, "ping").await, "ping", "a tunnel has no time limit");
}

#[tokio::test]
async fn workloads_that_come_and_go_cost_no_request() {
    let mut backends = Backends::new();
    let _api = (named(&backends, API_2, "2").await, named(&backends, API_3, "3").await);
    let proxy = backends.proxy("");
    let allow = "[[allow]]\nname = \"all\"\nfrom = \"service:client\"\nto = \"service:*\"\n";
    let mut client = proxy.http1(CALLER).await;
    for round in 0..50 {
        let workloads: &[_] = if round % 2 == 0 { &[API_2] } else { &[API_3] };
        proxy.switch(backends.view_on(allow, workloads));
        for _ in 0..4 {
            client.ready().await.unwrap();
            let got = client.send_request(request1("GET", "/")).await.unwrap();
            let expected = if round % 2 == 0 { "2" } else { "3" };
            assert_eq!((got.status(), text(got).await.as_str()), (StatusCode::OK, expected));
        }
    }
}
