//! Request smuggling: bytes and frames that two programs could read in two ways, and what a backend
//! gets to see of them.
//!
//! The backend is a strict reader of its own, not a library: it takes every byte that the proxy sends
//! for what RFC 9112 says it is, and complains about everything that another reader might take
//! otherwise. After each case a bystander asks through the same proxy, and must get the answer to its
//! own request: that's what smuggling attacks.

mod frames;
mod http1;
mod http2;
mod identities;
mod reader;

use crate::tests::support::*;
use reader::{Backend, Seen};

/// What has to become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nothing of it reaches a backend, and its sender gets no success.
    Refused,
    /// It arrives, with this line and this body.
    Passes(&'static str, &'static str),
    /// Either of the two is right: it says one thing only, but no proper client says it so.
    RefusedOr(&'static str, &'static str),
}

/// A proxy before a strict backend.
struct Lab {
    backend: Backend,
    proxy: Proxy,
}

impl Lab {
    async fn start() -> Self {
        let backend = Backend::start().await;
        let rules = vec![
            deny("no-admin", "any", &[(None, Some("/admin")), (None, Some("/admin/*"))]),
            allow("api", "service:api", &[]),
            allow("batch", "service:batch", &[]),
        ];
        let proxy = Proxy::start(backend.port, rules);
        Self { backend, proxy }
    }

    /// What is wrong with what the backend saw of a case, or with what a bystander got.
    async fn judge(&self, fate: Fate, succeeded: bool) -> Result<(), String> {
        let head = "GET /bystander HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        let got = self.proxy.exchange(BATCH, head).await;
        if !got.starts_with("HTTP/1.1 200") || !got.ends_with("GET /bystander") {
            return Err(format!("the bystander got {got:?}"));
        }
        let mut seen = self.backend.take();
        if seen.pop().is_none_or(|last| last.line != "GET /bystander HTTP/1.1") {
            return Err(format!("the bystander didn't come last, but after {seen:#?}"));
        }
        if let Some(bad) =
            seen.iter().find(|it| it.complaint.is_some() || it.line.contains("/admin"))
        {
            return Err(format!("the backend saw {bad:#?}"));
        }
        let passed = |line: &str, body: &str| match &*seen {
            [Seen { line: got, body: rest, .. }] => got == line && rest == body.as_bytes(),
            _ => false,
        };
        let right = match fate {
            Fate::Refused => seen.is_empty() && !succeeded,
            Fate::Passes(line, body) => passed(line, body) && succeeded,
            Fate::RefusedOr(line, body) if succeeded => passed(line, body),
            Fate::RefusedOr(..) => seen.is_empty(),
        };
        let found = || format!("want {fate:?}; success: {succeeded}; the backend saw {seen:#?}");
        right.then_some(()).ok_or_else(found)
    }
}

/// Everything that is wrong, at once.
fn expect_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}
