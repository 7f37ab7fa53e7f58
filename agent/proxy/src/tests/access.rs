//! Access control of requests, and what each side is told.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::routed::{self, Backends};
use super::support::*;
use crate::{Process, Processes, Ruling, SeriesLabels, Side, StatusClass, Traffic};

const READ_PUBLIC: &[(Option<&str>, Option<&str>)] =
    &[(Some("GET"), Some("/public")), (Some("GET"), Some("/public/*"))];

/// FNV-1a.
const MARK_OF_NO_ADMIN: &str = "17972049809814786596";

#[tokio::test]
async fn only_allowed_requests_reach_the_application_by_http1() {
    let application = Application::hello().await;
    let proxy =
        Proxy::start(application.port, vec![allow("api-reads", "service:api", READ_PUBLIC)]);
    let mut client = proxy.http1(API).await;

    let answer = client.send_request(request1("GET", "/public?q=1")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(text(answer).await, "hello");
    for (method, path) in [("POST", "/public"), ("GET", "/admin"), ("GET", "/")] {
        client.ready().await.unwrap();
        let answer = client.send_request(request1(method, path)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{method} {path}");
        assert!(text(answer).await.starts_with("forbidden by mesh policy (request "));
    }
    assert_eq!(application.seen().len(), 1);
    assert_eq!(application.seen()[0].uri, "/public?q=1");
}

#[tokio::test]
async fn only_allowed_requests_reach_the_application_by_http2() {
    let application = Application::hello().await;
    let proxy =
        Proxy::start(application.port, vec![allow("api-reads", "service:api", READ_PUBLIC)]);
    let mut client = proxy.http2(API).await;

    let answer = client.send_request(get("/public")).await.unwrap();
    assert_eq!((answer.status(), text(answer).await.as_str()), (StatusCode::OK, "hello"));
    for (method, path) in [("POST", "/public"), ("GET", "/admin")] {
        let answer = client.send_request(request(method, path)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{method} {path}");
    }
    let seen = application.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].headers["host"], "web.prod.mesh.internal");
}

#[tokio::test]
async fn a_refusal_names_its_rule_in_the_log_and_not_in_the_answer() {
    let log = Logged::start();
    let application = Application::hello().await;
    let rules = vec![
        deny("no-admin", "any", &[(None, Some("/admin"))]),
        allow("api-all", "service:api", &[]),
    ];
    let proxy = Proxy::start(application.port, rules);
    let mut client = proxy.http1(API).await;

    let answer = client.send_request(request1("GET", "/admin")).await.unwrap();
    // For the agent at the other side, which has the rules of its own callers.
    assert_eq!(answer.headers()["x-isthmus-denied-by"], MARK_OF_NO_ADMIN);
    let refusal = text(answer).await;
    client.ready().await.unwrap();
    text(client.send_request(request1("GET", "/else")).await.unwrap()).await;

    assert!(!refusal.contains("no-admin"), "{refusal}");
    let kept = proxy.metrics.refused_requests();
    let [kept] = &*kept else { panic!("only what was refused: {kept:?}") };
    assert_eq!((kept.method.as_str(), &*kept.path, kept.status), ("GET", "/admin", Some(403)));
    assert_eq!((&*kept.from, &*kept.to, &*kept.rule), ("service:api", "service:web", "no-admin"));
    assert_eq!((kept.source.ip(), kept.side), (API, Side::Server));
    assert_eq!(kept.origin.as_ref().unwrap().line, 7);
    let line = log.line("/admin").await;
    let id = refusal.split(['(', ')']).nth(1).unwrap().strip_prefix("request ").unwrap();
    let parts = [
        "\"target\":\"isthmus::access\"",
        "\"rule\":\"no-admin\"",
        "\"origin\":\"mesh.toml:7\"",
        "\"from\":\"service:api\"",
        "\"to\":\"service:web\"",
        "\"method\":\"GET\"",
        "\"status\":403",
        "\"verdict\":\"deny\"",
        id,
    ];
    for part in parts {
        assert!(line.contains(part), "{part} in {line}");
    }
    let line = log.line("/else").await;
    for part in ["\"rule\":\"api-all\"", "\"status\":200", "\"bytes\":5", "\"completed\":true"] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[tokio::test]
async fn both_sides_log_a_request_by_one_id() {
    const ID: &str = "0123456789abcdef";
    let log = Logged::start();
    let request = |path: &str, id: &str| {
        let request = Request::builder().uri(path).header("host", "web");
        request.header("x-isthmus-request-id", id).body(full("")).unwrap()
    };
    let said = |line: &str| {
        let (_, id) = line.split_once("\"request_id\":\"").unwrap();
        id.split('"').next().unwrap().to_owned()
    };

    // The caller's side says how it calls the request, whatever the caller has to say.
    let mut backends = Backends::new();
    let api = backends.start(routed::API_2, |_| async { Response::new(full("hello")) }).await;
    let proxy = backends.proxy("");
    let mut client = proxy.http1(routed::CALLER).await;
    text(client.send_request(request("/there", ID)).await.unwrap()).await;
    let seen = api.seen();
    let ids: Vec<_> = seen[0].headers.get_all("x-isthmus-request-id").iter().collect();
    assert_eq!(ids, [&*said(&log.line("/there").await)]);
    assert_ne!(ids, [ID]);

    // The server's side takes it over, and keeps it from the application.
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, vec![allow("all", "service:api", &[])]);
    let mut client = proxy.http1(API).await;
    let wrong = ["0123456789ABCDEF", "123456789abcdef", "+123456789abcdef", ""];
    for (at, id) in [ID].into_iter().chain(wrong).enumerate() {
        let path = format!("/here-{at}");
        client.ready().await.unwrap();
        text(client.send_request(request(&path, id)).await.unwrap()).await;
        let logged = said(&log.line(&path).await);
        assert_eq!(logged == ID, id == ID, "{id:?} {logged}");
        assert_eq!(logged.len(), 16);
    }
    let hidden = |head: &http::request::Parts| !head.headers.contains_key("x-isthmus-request-id");
    assert!(application.seen().iter().all(hidden));
}

/// Whoever calls here.
#[derive(Debug)]
struct Curl;

impl Processes for Curl {
    fn of(&self, caller: SocketAddr, called: SocketAddr) -> Option<Process> {
        assert_eq!((caller.ip(), called.ip()), (routed::CALLER, routed::API));
        let (user, program) = ("app".to_owned(), "/usr/bin/curl".to_owned());
        Some(Process { user, program, unit: String::new() })
    }
}

#[tokio::test]
async fn the_callers_side_logs_by_which_rule_the_other_side_refused() {
    const RULES: &str = "[[deny]]\nname = \"no-admin\"\nfrom = \"any\"\nto = \"service:api\"\n\
                         http = [{ path = \"/admin\" }]\n";
    let log = Logged::start();
    let refuse = |request: Request<Incoming>| async move {
        let mark = if request.uri().path() == "/admin" { MARK_OF_NO_ADMIN } else { "1" };
        let answer = Response::builder().status(403).header("x-isthmus-denied-by", mark);
        answer.body(full("forbidden")).unwrap()
    };
    let mut backends = Backends::new();
    let api = backends.start(routed::API_2, refuse).await;
    let near = backends.start(routed::NEAR, refuse).await;
    let proxy = backends.proxy(RULES);
    proxy.metrics.ask_for_processes(Arc::new(Curl));
    let mut client = proxy.http1(routed::CALLER).await;
    for path in ["/admin", "/other"] {
        client.ready().await.unwrap();
        let answer = client.send_request(request1("GET", path)).await.unwrap();
        assert!(!answer.headers().contains_key("x-isthmus-denied-by"), "{:?}", answer.headers());
        assert_eq!(text(answer).await, "forbidden");
    }
    let line = log.line("/admin").await;
    for part in [
        "\"verdict\":\"deny\"",
        "\"rule\":\"no-admin\"",
        "\"origin\":\"mesh.toml:",
        "\"judged_at\":\"b\"",
        "\"user\":\"app\"",
        "\"program\":\"/usr/bin/curl\"",
        "\"status\":403",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let line = log.line("/other").await;
    assert!(line.contains("\"rule\":\"a rule that this host doesn't know\""), "{line}");
    assert_eq!((api.seen().len(), near.seen().len()), (2, 0));
}

#[tokio::test]
async fn an_application_on_this_host_refuses_in_its_own_name() {
    let log = Logged::start();
    let refuse = |_| async {
        let answer = Response::builder().status(403);
        answer.header("x-isthmus-denied-by", MARK_OF_NO_ADMIN).body(full("no")).unwrap()
    };
    let mut backends = Backends::new();
    let _near = backends.start(routed::NEAR, refuse).await;
    let proxy = backends.proxy("[[route.api]]\nto = [{ service = \"near\" }]\n");
    let mut client = proxy.http1(routed::CALLER).await;
    let answer = client.send_request(request1("GET", "/own")).await.unwrap();
    assert!(!answer.headers().contains_key("x-isthmus-denied-by"));
    text(answer).await;
    let line = log.line("/own").await;
    assert!(line.contains("\"verdict\":\"allow\"") && !line.contains("judged_at"), "{line}");
}

#[tokio::test]
async fn what_is_refused_within_a_host_is_logged_and_kept_as_refused() {
    const RULES: &str = "[[route.api]]\nto = [{ service = \"near\" }]\n\
                         [[deny]]\nname = \"closed\"\nfrom = \"any\"\nto = \"service:near\"\n\
                         http = [{ path = \"/closed\" }]\n";
    let log = Logged::start();
    let mut backends = Backends::new();
    let near = backends.start(routed::NEAR, |_| async { Response::new(full("hello")) }).await;
    let proxy = backends.proxy(RULES);
    proxy.metrics.ask_for_processes(Arc::new(Curl));
    proxy.metrics.measured().watch(["".to_owned(), "api-1".to_owned()]);
    let mut client = proxy.http1(routed::CALLER).await;
    for (path, status) in [("/closed", 403), ("/open", 200)] {
        client.ready().await.unwrap();
        let answer = client.send_request(request1("GET", path)).await.unwrap();
        assert_eq!(answer.status(), status);
        text(answer).await;
    }
    let line = log.line("/closed").await;
    for part in
        ["\"verdict\":\"deny\"", "\"rule\":\"closed\"", "\"user\":\"app\"", "\"status\":403"]
    {
        assert!(line.contains(part), "{part} in {line}");
    }
    let line = log.line("/open").await;
    assert!(line.contains("\"verdict\":\"allow\""), "{line}");

    let kept = proxy.metrics.refused_requests();
    let [kept] = &*kept else { panic!("only what was refused: {kept:?}") };
    assert_eq!((&*kept.path, &*kept.rule, kept.side), ("/closed", "closed", Side::Client));
    assert_eq!(near.seen().len(), 1);
    // A rollout counts what got there, as the caller's and as the service's.
    let measured = proxy.metrics.measured().take();
    let counts = |(route, backend, traffic): &(String, String, Traffic)| {
        (route.clone(), backend.clone(), traffic.latencies.count(), traffic.failures)
    };
    let counted: Vec<_> = measured.iter().map(counts).collect();
    let near = || "near".to_owned();
    assert_eq!(counted, [(String::new(), near(), 1, 0), ("api-1".to_owned(), near(), 1, 0)]);
}

#[tokio::test]
async fn what_audit_mode_lets_pass_within_a_host_is_logged_as_audited() {
    const RULES: &str = "[[route.api]]\nto = [{ service = \"near\" }]\n\
                         [[deny]]\nname = \"closed\"\nfrom = \"any\"\nto = \"service:near\"\n\
                         audit = true\nhttp = [{ path = \"/closed\" }]\n";
    let log = Logged::start();
    let mut backends = Backends::new();
    let _near = backends.start(routed::NEAR, |_| async { Response::new(full("hello")) }).await;
    let proxy = backends.proxy(RULES);
    let mut client = proxy.http1(routed::CALLER).await;
    for path in ["/closed", "/open"] {
        client.ready().await.unwrap();
        let answer = client.send_request(request1("GET", path)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        text(answer).await;
    }
    let line = log.line("/closed").await;
    assert!(line.contains("\"verdict\":\"audit\""), "{line}");
    assert!(line.contains("\"rule\":\"closed\""), "{line}");
    let line = log.line("/open").await;
    assert!(line.contains("\"verdict\":\"allow\""), "{line}");
}

#[tokio::test]
async fn another_caller_is_another_identity() {
    let application = Application::hello().await;
    let rules = vec![
        allow("api-reads", "service:api", READ_PUBLIC),
        allow("batch-jobs", "service:batch", &[(None, Some("/jobs"))]),
    ];
    let proxy = Proxy::start(application.port, rules);
    let mut client = proxy.http1(BATCH).await;
    let answer = client.send_request(request1("GET", "/public")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    text(answer).await;
    client.ready().await.unwrap();
    let answer = client.send_request(request1("GET", "/jobs")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_caller_without_any_allowance_and_one_without_a_name_are_not_talked_to() {
    let application = Application::hello().await;
    let proxy =
        Proxy::start(application.port, vec![allow("api-reads", "service:api", READ_PUBLIC)]);
    // A process of this host may dial from the address of a service here: it proves nothing.
    for caller in [BATCH, NOBODY, WEB] {
        let got = proxy.exchange(caller, "GET /public HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(got, "", "{caller}");
    }
    proxy.metrics_become(|metrics| metrics.refused_connections == 3).await;
    assert!(application.seen().is_empty());
}

#[tokio::test]
async fn nobody_can_claim_an_identity_in_a_header() {
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, vec![allow("api-all", "service:api", &[])]);
    let lies = "spiffe://corp.example/ns/prod/sa/root";
    let got = proxy
        .exchange(
            API,
            format!(
                "GET / HTTP/1.1\r\nHost: shop.example:8080\r\nX-Isthmus-Identity: {lies}\r\n\
                 X_Isthmus_Identity: {lies}\r\nx-isthmus_identity: {lies}\r\n\
                 X-Forwarded-Client-Cert: URI={lies}\r\nX-Forwarded-For: 192.0.2.1\r\n\
                 Connection: close, x-secret\r\nX-Secret: 1\r\n\r\n"
            ),
        )
        .await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");

    let seen = &application.seen()[0].headers;
    let identities: Vec<_> = seen.get_all("x-isthmus-identity").iter().collect();
    assert_eq!(identities, ["spiffe://corp.example/ns/prod/sa/api"]);
    assert!(!seen.iter().any(|(_, value)| value.to_str().unwrap().contains(lies)), "{seen:?}");
    assert_eq!(seen["host"], "shop.example:8080");
    assert_eq!(seen["x-forwarded-for"], "192.0.2.1, 127.64.2.2");
    assert!(!seen.contains_key("x-secret") && !seen.contains_key("connection"), "{seen:?}");
}

#[tokio::test]
async fn ambiguous_paths_are_refused_where_a_path_decides() {
    let application = Application::hello().await;
    let proxy =
        Proxy::start(application.port, vec![allow("api-reads", "service:api", READ_PUBLIC)]);
    let paths = [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/..%2fadmin",
        "/public%2f..%2fadmin",
        "/public/..;/admin",
        "/public\\..\\admin",
        "/public/%00",
        "//public/../../admin",
        "/public/%252e%252e/admin/..",
    ];
    for path in paths {
        let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
        let got = proxy.exchange(API, request).await;
        let refused = got.starts_with("HTTP/1.1 403") || got.starts_with("HTTP/1.1 400");
        assert!(refused, "{path}: {got}");
    }
    assert!(application.seen().is_empty(), "{:?}", application.seen());
}

#[tokio::test]
async fn requests_are_counted_by_service_status_and_ruling() {
    let application = Application::hello().await;
    let proxy =
        Proxy::start(application.port, vec![allow("api-reads", "service:api", READ_PUBLIC)]);
    let mut client = proxy.http2(API).await;
    for path in ["/public", "/public", "/admin"] {
        text(client.send_request(get(path)).await.unwrap()).await;
    }
    proxy
        .metrics_become(|metrics| {
            let counted = metrics.series.iter().map(|it| {
                let SeriesLabels { side, source, service, ruling, .. } = &it.labels;
                assert_eq!(
                    (*side, source.as_str(), service.as_str()),
                    (Side::Server, "service:api", "web")
                );
                (*ruling, it.status, it.latency.count(), it.successes)
            });
            counted.eq([
                (Ruling::Allow, StatusClass::Success, 2, 2),
                (Ruling::Deny, StatusClass::ClientError, 1, 1),
            ])
        })
        .await;
    let metrics = proxy.metrics.snapshot();
    assert_eq!((metrics.active_connections, metrics.denied_requests), (1, 1));
    drop(client);
    proxy.metrics_become(|metrics| metrics.active_connections == 0).await;
}

#[tokio::test]
async fn split_cookies_reach_http1_applications_as_one() {
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, vec![allow("api-all", "service:api", &[])]);
    let mut client = proxy.http2(API).await;
    let request = Request::builder().uri("http://web/").header("cookie", "a=1");
    let request = request.header("cookie", "b=2").body(full("")).unwrap();
    client.send_request(request).await.unwrap();
    let cookies: Vec<_> = application.seen()[0].headers.get_all("cookie").iter().cloned().collect();
    assert_eq!(cookies, ["a=1; b=2"]);
}

#[tokio::test]
async fn of_requests_that_nothing_is_wrong_with_a_share_is_logged() {
    let log = Logged::start();
    let application = Application::hello().await;
    let proxy =
        Proxy::start(application.port, vec![allow("api-reads", "service:api", READ_PUBLIC)]);
    let mut client = proxy.http1(API).await;
    proxy.metrics.sample_access_log(0.0);
    for path in ["/public", "/public/1", "/refused"] {
        client.ready().await.unwrap();
        text(client.send_request(request1("GET", path)).await.unwrap()).await;
    }
    log.line("/refused").await;
    proxy.metrics.sample_access_log(1.0);
    client.ready().await.unwrap();
    text(client.send_request(request1("GET", "/public/2")).await.unwrap()).await;
    log.line("/public/2").await;
    assert!(!log.has("/public") && !log.has("/public/1"));
}
