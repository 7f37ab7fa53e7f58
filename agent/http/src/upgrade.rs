//! Upgrades: the requests that may turn their connection into a tunnel.

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Version};

use super::headers::list;

/// The protocol that a request asks to upgrade to, if it may pass.
///
/// A tunnel to another HTTP would carry requests that nobody judges ("h2c smuggling"), so such an
/// upgrade is ignored, as RFC 9110 section 7.8 lets a server do: the request passes as an ordinary
/// one. So is one that comes with a body, or with several protocols to choose from.
pub fn wanted(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let asks =
        |headers| list(headers, &CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"));
    if version != Version::HTTP_11 || !asks(headers) {
        return None;
    }
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || list(headers, &CONTENT_LENGTH).any(|length| length != "0");
    if has_body {
        return None;
    }
    let mut protocols = list(headers, &UPGRADE);
    let protocol = protocols.next().filter(|_| protocols.next().is_none())?;
    if carries_requests(protocol) { None } else { HeaderValue::from_str(protocol).ok() }
}

/// Whether the application's answer agrees to exactly what was asked for.
pub fn agrees(wanted: &HeaderValue, headers: &HeaderMap) -> bool {
    let mut protocols = list(headers, &UPGRADE);
    let first = protocols.next();
    protocols.next().is_none()
        && first.is_some_and(|first| first.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()))
}

fn carries_requests(protocol: &str) -> bool {
    let name = protocol.split('/').next().unwrap_or(protocol);
    ["h2c", "h2", "h3", "http", "tls"].iter().any(|known| name.eq_ignore_ascii_case(known))
}
