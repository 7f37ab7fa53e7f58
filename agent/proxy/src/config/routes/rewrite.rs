//! Another path for a backend, another place for a client.

use http::uri::PathAndQuery;
use isthmus_model::route::{PathChange, Redirect};

/// The path and query that a backend gets, as a route changes them. None if they can't be.
pub(crate) fn target(
    change: &PathChange,
    matched: Option<&str>,
    path: &str,
    query: Option<&str>,
) -> Option<PathAndQuery> {
    with_query(&changed(change, matched, path), query).parse().ok()
}

/// Target of a redirect.
pub(crate) fn location(
    redirect: &Redirect,
    matched: Option<&str>,
    (host, port): (&str, u16),
    path: &str,
    query: Option<&str>,
) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let host = redirect.host.as_deref().unwrap_or(host);
    let usual = if scheme == "https" { 443 } else { 80 };
    // A given scheme means its usual port, as in Gateway API.
    let port = match (redirect.port, &redirect.scheme) {
        (Some(port), _) => port,
        (None, Some(_)) => usual,
        (None, None) => port,
    };
    let port = if port == usual { String::new() } else { format!(":{port}") };
    let path =
        redirect.path.as_ref().map_or_else(|| path.to_owned(), |it| changed(it, matched, path));
    format!("{scheme}://{host}{port}{}", with_query(&path, query))
}

fn changed(change: &PathChange, matched: Option<&str>, path: &str) -> String {
    match change {
        PathChange::Full(path) => path.to_string(),
        PathChange::Prefix(prefix) => {
            let matched = matched.unwrap_or("/").trim_end_matches('/');
            let rest = path.strip_prefix(matched).unwrap_or(path);
            if rest.is_empty() {
                return prefix.to_string();
            }
            format!("{}{rest}", prefix.trim_end_matches('/'))
        }
    }
}

fn with_query(path: &str, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matched_prefix_is_replaced() {
        // Request, matched prefix, replacement, result: the table of Gateway API's
        // HTTPPathModifier, where it applies to prefixes without a slash at the end.
        let cases = [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "/", "/xyz", "/xyz/foo"),
            ("/", "/", "/xyz", "/xyz/"),
        ];
        for (path, matched, replacement, expected) in cases {
            let change = PathChange::Prefix(replacement.into());
            let got = target(&change, Some(matched), path, None).unwrap();
            assert_eq!(got, *expected, "{path} with {matched} replaced by {replacement}");
        }
        let full = PathChange::Full("/all".into());
        assert_eq!(target(&full, None, "/foo", Some("a=1")).unwrap(), "/all?a=1");
    }

    #[test]
    fn a_redirect_changes_what_it_names_and_keeps_the_rest() {
        let none = Redirect { scheme: None, host: None, port: None, path: None, status: 302 };
        let cases = [
            (
                Redirect { scheme: Some("https".into()), ..none.clone() },
                "https://a.example/p/x?q=1",
            ),
            (Redirect { host: Some("b".into()), ..none.clone() }, "http://b:8080/p/x?q=1"),
            (Redirect { port: Some(80), ..none.clone() }, "http://a.example/p/x?q=1"),
            (
                Redirect { scheme: Some("https".into()), port: Some(8443), ..none.clone() },
                "https://a.example:8443/p/x?q=1",
            ),
            (
                Redirect { path: Some(PathChange::Prefix("/n".into())), ..none.clone() },
                "http://a.example:8080/n/x?q=1",
            ),
            (
                Redirect { path: Some(PathChange::Full("/".into())), ..none },
                "http://a.example:8080/?q=1",
            ),
        ];
        for (redirect, expected) in cases {
            let got = location(&redirect, Some("/p"), ("a.example", 8080), "/p/x", Some("q=1"));
            assert_eq!(got, expected);
        }
    }
}
