//! Routes in an operator's words.

use std::sync::Arc;

use crate::route::{HeaderChanges, PathChange, Redirect, Rewrite, Route, RouteAction, Share};

/// All that a route says, by key; the same keys for every route.
pub(super) fn facts(route: &Route) -> Vec<(&'static str, String)> {
    // Taken apart, so that a new field can't be forgotten here.
    let Route {
        name: _,
        service,
        matches: _,
        action,
        request_headers,
        response_headers,
        timeout,
        try_timeout,
        hedge,
        retry,
        mirrors,
        delay,
        abort,
        origin: _,
    } = route;
    let time = |time: &Option<std::time::Duration>| optional(time.map(|time| format!("{time:?}")));
    let retry = retry.as_ref().map(|retry| {
        let also = if retry.non_idempotent { ", any method" } else { "" };
        let (attempts, budget, backoff) = (retry.attempts, retry.budget, retry.backoff);
        format!("{attempts} on {}, budget {budget}, backoff {backoff:?}{also}", list(&retry.on))
    });
    let mirrors: Vec<String> =
        mirrors.iter().map(|mirror| format!("{} {}", mirror.service, mirror.share)).collect();
    let delay = delay.map(|(time, share): (_, Share)| format!("{time:?} {share}"));
    let abort = abort.map(|(status, share)| format!("{status} {share}"));
    vec![
        ("service", service.to_string()),
        ("match", show_matches(route)),
        ("action", show_action(action)),
        ("request_headers", changes(request_headers)),
        ("response_headers", changes(response_headers)),
        ("timeout", time(timeout)),
        ("try_timeout", time(try_timeout)),
        ("hedge", optional(hedge.map(|it| format!("{} after {:?}", it.max, it.after)))),
        ("retry", optional(retry)),
        ("mirror", list(&mirrors)),
        ("delay", optional(delay)),
        ("abort", optional(abort)),
    ]
}

/// What a route does, in one line.
pub(super) fn summary(route: &Route) -> String {
    format!("{}: {} {}", route.service, show_matches(route), show_action(&route.action))
}

impl Route {
    /// Which requests it takes, in words, and what it does with them.
    #[must_use]
    pub fn in_words(&self) -> (String, String) {
        (show_matches(self), show_action(&self.action))
    }
}

fn show_matches(route: &Route) -> String {
    if route.matches.is_empty() { "everything".to_owned() } else { list(&route.matches) }
}

/// What becomes of requests, as in `to api-v1 95, api-v2 5`.
fn show_action(action: &RouteAction) -> String {
    match action {
        RouteAction::Forward { to, rewrite } => {
            let backend = |it: &crate::route::Backend| format!("{} {}", it.service, it.weight);
            let to: Vec<String> = to.iter().map(backend).collect();
            format!("to {}{}", list(&to), show_rewrite(rewrite))
        }
        RouteAction::Redirect(redirect) => show_redirect(redirect),
        RouteAction::Respond { status, body } => format!("answer {status} {body:?}"),
    }
}

fn show_rewrite(Rewrite { host, path }: &Rewrite) -> String {
    let host = host.as_ref().map(|host| format!(" with host {host}"));
    let path = path.as_ref().map(|path: &PathChange| format!(" with path {path}"));
    [host, path].into_iter().flatten().collect()
}

fn show_redirect(Redirect { scheme, host, port, path, status }: &Redirect) -> String {
    let parts = [
        scheme.as_ref().map(|scheme| format!(" scheme {scheme}")),
        host.as_ref().map(|host| format!(" host {host}")),
        port.map(|port| format!(" port {port}")),
        path.as_ref().map(|path| format!(" path {path}")),
    ];
    format!("redirect {status}{}", parts.into_iter().flatten().collect::<String>())
}

fn changes(HeaderChanges { set, add, remove }: &HeaderChanges) -> String {
    let pair = |sign: char, (name, value): &(Arc<str>, Arc<str>)| format!("{sign}{name}: {value}");
    let words: Vec<String> = set
        .iter()
        .map(|it| pair('=', it))
        .chain(add.iter().map(|it| pair('+', it)))
        .chain(remove.iter().map(|name| format!("-{name}")))
        .collect();
    list(&words)
}

fn optional(value: Option<String>) -> String {
    value.unwrap_or_else(|| "none".to_owned())
}

fn list<T: ToString>(values: &[T]) -> String {
    if values.is_empty() {
        return "none".to_owned();
    }
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
