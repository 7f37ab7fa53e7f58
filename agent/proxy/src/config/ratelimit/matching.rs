//! Whether a limit is about a request. What can be read in two ways is, if it is in one of them: nobody
//! gets around a limit by writing a request oddly.

use http::request::Parts;
use isthmus_http::headers::host_of;
use isthmus_model::host::split_port;
use isthmus_model::route::{HostMatch, PathMatch, RouteMatch};
use isthmus_policy::fields::{Readings, header_fits, parameter_fits};
use isthmus_policy::path::canonical;

use crate::config::fields::Lines;

pub(super) fn fits(wanted: &RouteMatch, head: &Parts) -> bool {
    let RouteMatch { hosts, sni: _, path, method, headers, query } = wanted;
    let asked_query = head.uri.query().unwrap_or_default();
    method.as_deref().is_none_or(|method| method == head.method.as_str())
        && path.as_ref().is_none_or(|path| path_fits(path, head.uri.path()))
        && (hosts.is_empty() || host_fits(hosts, head))
        && headers.iter().all(|it| header_fits(it, &Lines(&head.headers), Readings::Any))
        && query.iter().all(|it| parameter_fits(it, asked_query, Readings::Any))
}

fn host_fits(hosts: &[HostMatch], head: &Parts) -> bool {
    let (host, _) = split_port(host_of(head));
    hosts.iter().any(|wanted| wanted.fits(host))
}

fn path_fits(wanted: &PathMatch, path: &str) -> bool {
    let Ok(path) = canonical(path) else { return true };
    match wanted {
        // The canonical form has no slash at its end.
        PathMatch::Exact(exact) => exact.trim_end_matches('/') == path.trim_end_matches('/'),
        PathMatch::Prefix(prefix) => {
            let rest = path.strip_prefix(prefix.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::Regex(pattern) => pattern.fits(&path),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(path: &str) -> Parts {
        Request::builder().uri(path).body(()).unwrap().into_parts().0
    }

    #[test]
    fn no_spelling_of_a_path_gets_around() {
        let is = |wanted: PathMatch, path| {
            fits(&RouteMatch { path: Some(wanted), ..RouteMatch::default() }, &head(path))
        };
        let prefix = || PathMatch::Prefix("/search".into());
        for path in ["/search", "/search/", "/search/a", "/%73earch", "/a/../search", "//search"] {
            assert!(is(prefix(), path), "{path}");
        }
        for path in ["/", "/searches", "/a/search"] {
            assert!(!is(prefix(), path), "{path}");
        }
        let exact = || PathMatch::Exact("/search".into());
        assert!(is(exact(), "/search/") && !is(exact(), "/search/a"));
        assert!(is(PathMatch::Exact("/".into()), "/"));
        assert!(is(PathMatch::Prefix("/".into()), "/a"));
    }
}
