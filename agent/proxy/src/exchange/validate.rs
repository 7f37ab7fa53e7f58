//! Validation: whether a request is one that all programs read alike, and the one form in which it goes on.

use std::borrow::Cow;

use http::header::{COOKIE, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Method, Version};
use isthmus_http::headers::{self, list};
use isthmus_http::limits::Author;
use isthmus_model::host::canonical_authority;

/// The fault of a request, in words for its sender.
pub(super) struct Improper(pub(super) &'static str);

const NO_HOST: Improper = Improper("a Host that isn't a host and port");

/// Makes a request the one that is judged and passed on alike. Gives the host that it is for.
pub(super) fn settle(head: &mut Parts) -> Result<HeaderValue, Improper> {
    proper(head)?;
    if !headers::remove_nominated(&mut head.headers) {
        return Err(Improper("a Connection that names what is not for it to name"));
    }
    settle_host(head)
}

/// Brings the host that a request is for into its one form, and into `Host`: there policy, routes and
/// the application find it.
fn settle_host(head: &mut Parts) -> Result<HeaderValue, Improper> {
    let mut lines = head.headers.get_all(HOST).iter();
    let (line, another) = (lines.next(), lines.next());
    if another.is_some() {
        return Err(Improper("more than one Host"));
    }
    let told = line.map(|line| line.to_str().map_err(|_| NO_HOST).and_then(form_of)).transpose()?;
    let target = head.uri.authority().map(|target| form_of(target.as_str())).transpose()?;
    let host = match (target, told) {
        // HTTP/2 has both only if they agree (RFC 9113, section 8.3.1).
        (Some(target), Some(told)) if head.version == Version::HTTP_2 && target != told => {
            return Err(Improper("a Host that isn't the authority"));
        }
        // By HTTP/1 the line doesn't count (RFC 9112, section 3.2.2), but must be there.
        (Some(_), None) if head.version == Version::HTTP_11 => return Err(Improper("no Host")),
        (Some(host), _) => host,
        (None, Some(Cow::Borrowed(host))) if line.is_some_and(|it| it.len() == host.len()) => {
            return line.cloned().ok_or(NO_HOST);
        }
        (None, Some(host)) => host,
        (None, None) if head.version == Version::HTTP_10 => "localhost".into(),
        (None, None) => return Err(Improper("no Host")),
    };
    let host = HeaderValue::from_str(&host).map_err(|_| NO_HOST)?;
    head.headers.insert(HOST, host.clone());
    Ok(host)
}

fn form_of(host: &str) -> Result<Cow<'_, str>, Improper> {
    canonical_authority(host).map_err(|_| NO_HOST)
}

/// What has been read properly and still doesn't pass. Framing that could be read in two ways was
/// refused before, by `http1` and by hyper; the codings are looked at again for HTTP/2, which has none.
fn proper(head: &Parts) -> Result<(), Improper> {
    if head.version == Version::HTTP_2 && head.headers.contains_key(TRANSFER_ENCODING) {
        let mut codings = list(&head.headers, &TRANSFER_ENCODING);
        if codings.next().is_some_and(|coding| !coding.eq_ignore_ascii_case("chunked")) {
            return Err(Improper("a Transfer-Encoding other than chunked"));
        }
        if codings.next().is_some() {
            return Err(Improper("more than one Transfer-Encoding"));
        }
    }
    if head.uri.scheme().is_some_and(|it| *it != Scheme::HTTP && *it != Scheme::HTTPS) {
        return Err(Improper("a scheme other than http and https"));
    }
    if head.method == Method::CONNECT {
        return Err(Improper("CONNECT, which is not for services"));
    }
    // Not `path()`, which is `/` where there is none.
    let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if path.starts_with('/') || (path == "*" && head.method == Method::OPTIONS) {
        Ok(())
    } else {
        Err(Improper("a target that isn't a path"))
    }
}

/// Whether the next hop, which reads HTTP/1.1, would refuse what has come by HTTP/2.
pub(super) fn has_too_many_fields(head: &Parts, next: Version) -> bool {
    let most = Author::Anybody.most_fields();
    if head.version != Version::HTTP_2 || head.headers.len() <= most || next == Version::HTTP_2 {
        return false;
    }
    // HTTP/2 may split it, and it's passed on as one.
    let crumbs = head.headers.get_all(COOKIE).iter().count();
    head.headers.len() - crumbs.saturating_sub(1) > most
}
