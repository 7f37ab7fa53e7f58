//! Requests with tokens, and paths that a service has brought into shape.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_model::route::{FieldMatch, ValueMatch};
use isthmus_model::{JwtMatch, JwtProvider, KeySource, PathMode, Rule, TokenPlace};
use isthmus_policy::Policy;
use serde_json::json;
use tokio::time::timeout;

use super::support::*;
use crate::ProxySnapshot;
use crate::config::jwt::tests::Signer;
use crate::config::limits::Limits;

/// Admins may do everything, and everybody what is public.
fn rules(keys: &Path) -> Vec<Rule> {
    let provider = JwtProvider {
        name: "login".parse().unwrap(),
        issuer: "https://login".into(),
        audiences: Vec::new(),
        keys: KeySource::File(keys.to_owned()),
        place: TokenPlace::Header("authorization".into()),
        leeway: Duration::ZERO,
    };
    let role = FieldMatch { name: "role".into(), value: ValueMatch::Exact("admin".into()) };
    let mut admins = allow("admins", "service:api", &[(None, None)]);
    admins.http[0].jwt = Some(JwtMatch { provider: provider.into(), claims: vec![role] });
    vec![admins, allow("public", "service:api", &[(None, Some("/public"))])]
}

fn ask(path: &str, token: Option<&str>) -> String {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let token = token.unwrap_or_default();
    format!("GET {path} HTTP/1.1\r\nHost: web\r\n{token}Connection: close\r\n\r\n")
}

#[tokio::test]
async fn a_bad_token_is_401_and_only_the_log_says_why() {
    let log = Logged::start();
    let signer = Signer::new();
    let mut keys = tempfile::NamedTempFile::new().unwrap();
    keys.write_all(signer.set().to_string().as_bytes()).unwrap();
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, rules(keys.path()));
    let sign = |by: &Signer, role: &str| {
        let claims = json!({ "iss": "https://login", "exp": 99_999_999_999_u64, "role": role });
        by.sign(&json!({ "alg": "ES256" }), &claims)
    };
    let good = sign(&signer, "admin");
    let loaded = timeout(SOON, async {
        while !proxy.exchange(API, ask("/x", Some(&good))).await.starts_with("HTTP/1.1 200") {}
    });
    loaded.await.expect("the keys are loaded, and an admin may pass");

    let user = proxy.exchange(API, ask("/x", Some(&sign(&signer, "user")))).await;
    assert!(user.starts_with("HTTP/1.1 403"), "{user}");
    let nobody = proxy.exchange(API, ask("/x", None)).await;
    assert!(nobody.starts_with("HTTP/1.1 403"), "{nobody}");
    let public = proxy.exchange(API, ask("/public", None)).await;
    assert!(public.starts_with("HTTP/1.1 200"), "{public}");

    let forged = sign(&Signer::new(), "admin");
    for path in ["/forged", "/public"] {
        let got = proxy.exchange(API, ask(path, Some(&forged))).await;
        assert!(got.starts_with("HTTP/1.1 401"), "{path}: {got}");
        assert!(got.contains("www-authenticate: Bearer error=\"invalid_token\""), "{path}: {got}");
        assert!(!got.contains("signature"), "{path}: {got}");
    }
    let line = log.line("/forged").await;
    assert!(line.contains("token: its signature is wrong"), "{line}");
    assert!(!line.contains(&forged), "{line}");
}

#[tokio::test]
async fn a_request_ends_with_its_token() {
    let log = Logged::start();
    let signer = Signer::new();
    let mut keys = tempfile::NamedTempFile::new().unwrap();
    keys.write_all(signer.set().to_string().as_bytes()).unwrap();
    let application =
        Application::start(|request: http::Request<hyper::body::Incoming>| async move {
            if request.uri().path().starts_with("/slow") {
                std::future::pending::<()>().await;
            }
            http::Response::new(full("hello"))
        })
        .await;
    let limits = Limits { head: Duration::from_millis(800), ..Limits::default() };
    let proxy = Proxy::start_within(limits, application.port, rules(keys.path()));
    let sign = |expires: u64| {
        let claims = json!({ "iss": "https://login", "exp": expires, "role": "admin" });
        signer.sign(&json!({ "alg": "ES256" }), &claims)
    };
    let good = sign(99_999_999_999);
    let loaded = timeout(SOON, async {
        while !proxy.exchange(API, ask("/x", Some(&good))).await.starts_with("HTTP/1.1 200") {}
    });
    loaded.await.expect("the keys are loaded");

    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let short = sign(now + 3);
    let mut client = proxy.http2(API).await;
    let mut request = get("/slow/2");
    let bearer = format!("Bearer {short}").parse().unwrap();
    request.headers_mut().insert("authorization", bearer);
    let answer = tokio::spawn(async move { client.send_request(request).await });
    assert_eq!(proxy.exchange(API, ask("/slow/1", Some(&short))).await, "");
    let answer = timeout(SOON, answer).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.status(), http::StatusCode::UNAUTHORIZED);
    for path in ["/slow/1", "/slow/2"] {
        let line = log.line(path).await;
        assert!(line.contains("its token has expired"), "{line}");
    }
}

#[tokio::test]
async fn what_is_passed_on_is_what_was_judged() {
    let application = Application::hello().await;
    let no_admin = || deny("no-admin", "any", &[(None, Some("/admin/**"))]);
    let rules = || vec![no_admin(), allow("api", "service:api", &[])];
    let proxy = Proxy::start(application.port, rules());
    let view = |mode: PathMode| {
        let mut snapshot = (*proxy.view().snapshot).clone();
        for service in snapshot.services.values_mut() {
            service.paths = mode;
        }
        let policy = Policy::for_snapshot(&snapshot);
        Arc::new(ProxySnapshot::new(Arc::new(snapshot), Arc::new(policy)))
    };
    use PathMode::{AsIs, DecodeAndMergeSlashes, MergeSlashes, Strict};
    for (mode, path, passed) in [
        (Strict, "/a/b%7E?x=/../y", Ok("/a/b%7E?x=/../y")),
        (Strict, "/a/", Ok("/a/")),
        (Strict, "/a/../b", Err("400")),
        (Strict, "/a//b", Err("400")),
        (Strict, "/a%2Fb", Err("400")),
        (Strict, "/a;b", Err("400")),
        (Strict, "/a\\b", Err("400")),
        (Strict, "/%61dmin", Err("403")),
        (MergeSlashes, "/a/..//b/./c/?x=//", Ok("/b/c/?x=//")),
        (MergeSlashes, "/a\\b", Ok("/a/b")),
        (MergeSlashes, "/a/%2E%2e/b", Ok("/b")),
        (MergeSlashes, "/a/..", Ok("/")),
        (MergeSlashes, "/x/../admin", Err("403")),
        (MergeSlashes, "/x\\..\\admin", Err("403")),
        (MergeSlashes, "/a/../../b", Err("400")),
        (MergeSlashes, "/a%2Fb", Err("400")),
        (MergeSlashes, "/a;b", Err("400")),
        (DecodeAndMergeSlashes, "/a%2Fb", Ok("/a/b")),
        (DecodeAndMergeSlashes, "/a%2f..%5Cb", Ok("/b")),
        (DecodeAndMergeSlashes, "/x%2f..%2fadmin", Err("403")),
        (DecodeAndMergeSlashes, "/a%252Fb", Err("400")),
        (AsIs, "/b", Ok("/b")),
        (AsIs, "/a/../b", Err("403")),
    ] {
        proxy.switch(view(mode));
        let before = application.seen().len();
        let got = proxy.exchange(API, ask(path, None)).await;
        let seen = application.seen();
        let came = seen.get(before).map(|head| head.uri.to_string());
        match passed {
            Ok(target) => assert_eq!(came.as_deref(), Some(target), "{mode} {path}: {got}"),
            Err(status) => {
                assert!(got.starts_with(&format!("HTTP/1.1 {status}")), "{mode} {path}: {got}");
                assert_eq!(came, None, "{mode} {path}");
            }
        }
    }
}
