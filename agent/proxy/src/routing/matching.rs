//! Whether a request is what an entry of `match` asks for, its host and path aside.

use std::borrow::Cow;

use http::HeaderMap;
use isthmus_model::route::{FieldMatch, RouteMatch, ValueMatch};

/// A request, as far as routes look at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    /// In lower case, without the port.
    pub(crate) host: &'a str,
    /// In the policy's canonical form, with its last slash.
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) headers: &'a HeaderMap,
}

/// Whether method, header fields and parameters fit.
pub(super) fn fits(wanted: &RouteMatch, asked: &Asked<'_>) -> bool {
    let RouteMatch { hosts: _, sni: _, path: _, method, headers, query } = wanted;
    method.as_deref().is_none_or(|method| method == asked.method)
        && headers.iter().all(|field| header_fits(field, asked.headers))
        && query.iter().all(|field| parameter_fits(field, asked.query.unwrap_or_default()))
}

/// Several lines of a name are one list (RFC 9110, section 5.3).
fn header_fits(field: &FieldMatch, headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(&*field.name).iter();
    let Some(first) = lines.next() else { return false };
    let Ok(first) = first.to_str() else { return false };
    let mut value = Cow::Borrowed(first);
    for line in lines {
        let Ok(line) = line.to_str() else { return false };
        let joined = value.to_mut();
        joined.push_str(", ");
        joined.push_str(line);
    }
    value_fits(&field.value, &value)
}

/// Of a name that is there several times the first counts, as Gateway API has it.
fn parameter_fits(field: &FieldMatch, query: &str) -> bool {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut pairs = pairs.filter(|(name, _)| decoded(name) == *field.name);
    pairs.next().is_some_and(|(_, value)| value_fits(&field.value, &decoded(value)))
}

fn value_fits(wanted: &ValueMatch, value: &str) -> bool {
    match wanted {
        ValueMatch::Exact(wanted) => **wanted == *value,
        ValueMatch::Regex(pattern) => pattern.fits(value),
    }
}

/// A name or value of a query, decoded as forms are.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        (bytes, rest) = match (first, tail) {
            (b'+', _) => (with(bytes, b' '), tail),
            (b'%', [high, low, tail @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (with(bytes, high << 4 | low), tail),
                (_, _) => (with(bytes, b'%'), &rest[1..]),
            },
            (byte, _) => (with(bytes, *byte), tail),
        };
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

fn with(mut bytes: Vec<u8>, byte: u8) -> Vec<u8> {
    bytes.push(byte);
    bytes
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
