//! Header fields: end-to-end, hop-by-hop, and reserved ones.

use http::header::{
    self, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE,
};

use http::request::Parts;

use super::marks::{DENIED_BY, IDENTITY, LEAVING, OURS, RATE_LIMITED, SERVER_TIME, UNHEALTHY};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Header in which Envoy names the caller.
const CLIENT_CERT: &str = "x-forwarded-client-cert";

/// Meant for the next hop even where `Connection` doesn't list them (RFC 9110, section 7.6.1).
/// `Trailer` isn't: it announces what arrives with the body.
const HOP_BY_HOP: [&str; 6] =
    ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// Prepares a request's header fields for the application.
pub fn to_application(
    headers: &mut HeaderMap,
    host: HeaderValue,
    from: &HeaderValue,
    peer: &HeaderValue,
) {
    to_next_hop(headers);
    headers.insert(HOST, host);
    introduce(headers, from, peer);
}

/// Removes from a request's header fields what is for this hop only, and what nobody may claim.
pub fn to_next_hop(headers: &mut HeaderMap) {
    let wants_trailers = list(headers, &TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    remove_hop_by_hop(headers);
    remove_named(headers, is_claim);
    // An application that knows nothing of it would be waited for without end.
    headers.remove(EXPECT);
    join_cookies(headers);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Tells an application who calls.
pub fn introduce(headers: &mut HeaderMap, from: &HeaderValue, peer: &HeaderValue) {
    identify(headers, from);
    append_forwarded_for(headers, peer);
}

/// Tells an application who calls, whose address is told already.
pub fn identify(headers: &mut HeaderMap, from: &HeaderValue) {
    headers.insert(IDENTITY, from.clone());
}

/// Tells who a gateway's client is and what it asked for. Whatever the client says of that itself
/// is removed, unless it is trusted.
pub fn announce(
    headers: &mut HeaderMap,
    (scheme, host, port): (&'static str, &HeaderValue, u16),
    peer: &HeaderValue,
    trusted: bool,
) {
    let facts = [
        ("x-forwarded-proto", HeaderValue::from_static(scheme)),
        ("x-forwarded-host", host.clone()),
        ("x-forwarded-port", HeaderValue::from(port)),
    ];
    if !trusted {
        remove_named(headers, |name| {
            let name = name.replace(|it: char| !it.is_ascii_alphanumeric(), "-");
            name.starts_with("x-forwarded-") || name == "forwarded" || name == "x-real-ip"
        });
    }
    for (name, value) in facts {
        headers.entry(name).or_insert(value);
    }
    append_forwarded_for(headers, peer);
}

/// Header in which a gateway describes its client's certificate.
pub fn certificate(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(CLIENT_CERT).cloned()
}

/// Says what a client's certificate says.
pub fn show_certificate(headers: &mut HeaderMap, certificate: HeaderValue) {
    headers.insert(CLIENT_CERT, certificate);
}

/// Prepares an answer's header fields for the caller.
pub fn to_caller(headers: &mut HeaderMap) {
    headers.remove(SERVER_TIME);
    headers.remove(RATE_LIMITED);
    remove_nominated_answer(headers);
    remove_hop_by_hop(headers);
    // Between proxies only.
    headers.remove(DENIED_BY);
    headers.remove(UNHEALTHY);
    headers.remove(LEAVING);
}

/// The host that a request is for, perhaps with a port, in its canonical form: where
/// validation has put it.
pub fn host_of(head: &Parts) -> &str {
    head.headers.get(HOST).and_then(|line| line.to_str().ok()).unwrap_or_default()
}

/// Whether a request's body is held back until it is asked for.
pub fn expects_continue(headers: &HeaderMap) -> bool {
    list(headers, &EXPECT).any(|it| it.eq_ignore_ascii_case("100-continue"))
}

/// The elements of a comma-separated field, over all its lines.
pub fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|element| !element.is_empty())
}

/// Removes from a request what its `Connection` names, before anybody looks at it: what is judged is
/// what is passed on. False if that would be what says who asks, for what, or how long it is, or if
/// what is named can't be a field.
pub fn remove_nominated(headers: &mut HeaderMap) -> bool {
    const NOT_TO_NAME: [HeaderName; 5] =
        [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, COOKIE, HOST, CONTENT_LENGTH];
    // These are no fields, or are seen to elsewhere.
    const USUAL: [&str; 3] = ["close", "trailer", "expect"];
    let is_usual =
        |name: &str| USUAL.iter().chain(&HOP_BY_HOP).any(|it| it.eq_ignore_ascii_case(name));
    let mut named = Vec::new();
    for line in headers.get_all(CONNECTION) {
        let Ok(line) = line.to_str() else { return false };
        for option in line.split(',').map(str::trim).filter(|it| !it.is_empty() && !is_usual(it)) {
            let Ok(name) = option.parse::<HeaderName>() else { return false };
            if NOT_TO_NAME.contains(&name) || is_claim(name.as_str()) {
                return false;
            }
            named.push(name);
        }
    }
    for name in named {
        headers.remove(name);
    }
    true
}

/// Removes what an answer's `Connection` names.
fn remove_nominated_answer(headers: &mut HeaderMap) {
    // What most list is seen to anyway, or is no field.
    let usual =
        |name: &&str| ["keep-alive", "close"].iter().any(|it| it.eq_ignore_ascii_case(name));
    let listed: Vec<HeaderName> = list(headers, &CONNECTION)
        .filter(|name| !usual(name))
        .filter_map(|name| name.parse().ok())
        // Listing these would only make the two sides disagree on where a message ends.
        .filter(|name| *name != CONTENT_LENGTH && *name != header::TRAILER)
        .collect();
    for name in listed {
        headers.remove(name);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have one or none, which this sees without a look-up for each.
    let mut there = [false; HOP_BY_HOP.len()];
    for name in headers.keys() {
        let name = name.as_str();
        if let Some(at) = HOP_BY_HOP.iter().position(|known| *known == name) {
            there[at] = true;
        }
    }
    if there == [false; HOP_BY_HOP.len()] {
        return;
    }
    for (name, _) in HOP_BY_HOP.iter().zip(there).filter(|(_, is_there)| *is_there) {
        headers.remove(*name);
    }
}

fn remove_named(headers: &mut HeaderMap, is_meant: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> =
        headers.keys().filter(|name| is_meant(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Whether a field, by its lower-case name, is the proxy's to say. In each spelling: applications
/// behind CGI or WSGI see `-` and `_` as the same, some of them also `.` and all other signs.
pub fn is_claim(name: &str) -> bool {
    let same = |(a, b): (u8, u8)| a == b || (b == b'-' && !a.is_ascii_alphanumeric());
    let begins = |with: &str| name.len() >= with.len() && name.bytes().zip(with.bytes()).all(same);
    begins(OURS) || (name.len() == CLIENT_CERT.len() && begins(CLIENT_CERT))
}

/// Removes from a request's trailers what nobody may claim, and what must come before the body
/// (RFC 9110, section 6.5.1): a backend that merges the two would read another request.
pub fn of_trailers(trailers: &mut HeaderMap) {
    const BEFORE: [HeaderName; 5] =
        [CONTENT_LENGTH, HOST, header::TRAILER, header::AUTHORIZATION, COOKIE];
    for name in HOP_BY_HOP {
        trailers.remove(name);
    }
    for name in &BEFORE {
        trailers.remove(name);
    }
    remove_named(trailers, is_claim);
}

/// HTTP/2 may split a cookie over lines, HTTP/1.1 may not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let lines = headers.get_all(COOKIE);
    if lines.iter().nth(1).is_some()
        && let Ok(joined) = HeaderValue::from_bytes(
            &lines.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]),
        )
    {
        headers.insert(COOKIE, joined);
    }
}

fn append_forwarded_for(headers: &mut HeaderMap, peer: &HeaderValue) {
    let mut hops = Vec::new();
    for hop in list(headers, &FORWARDED_FOR) {
        hops.extend_from_slice(hop.as_bytes());
        hops.extend_from_slice(b", ");
    }
    if hops.is_empty() {
        headers.insert(FORWARDED_FOR, peer.clone());
        return;
    }
    hops.extend_from_slice(peer.as_bytes());
    if let Ok(value) = HeaderValue::try_from(hops) {
        headers.insert(FORWARDED_FOR, value);
    }
}
