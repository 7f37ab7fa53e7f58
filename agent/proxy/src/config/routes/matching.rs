//! Whether a request is what an entry of `match` asks for, its host and path aside.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue};
use isthmus_model::route::{FieldMatch, ValueMatch};
use isthmus_policy::fields::{Readings, decoded, header_fits, value_fits};

use super::entries::Wanted;
use crate::config::fields::Lines;

/// A request, as far as routes look at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    /// In its canonical form, without the port.
    pub(crate) host: &'a str,
    /// In the policy's canonical form, with its last slash.
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) headers: &'a HeaderMap,
}

impl Asked<'_> {
    /// A header field as it is compared with a value: its lines are one list. None if it isn't there,
    /// or isn't text.
    pub(super) fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut lines = self.headers.get_all(name).iter();
        let mut joined = Cow::Borrowed(text(lines.next()?)?);
        for line in lines {
            let joined = joined.to_mut();
            joined.push_str(", ");
            joined.push_str(text(line)?);
        }
        Some(joined)
    }
}

fn text(line: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(line.as_bytes()).map(str::trim).ok()
}

/// Whether method, header fields and parameters fit.
pub(super) fn fits(wanted: &Wanted, asked: &Asked<'_>) -> bool {
    let Wanted { method, headers, query } = wanted;
    method.as_deref().is_none_or(|method| method == asked.method)
        && headers.iter().all(|field| header_fits(field, &Lines(asked.headers), Readings::All))
        && query.iter().all(|field| first_parameter_fits(field, asked.query.unwrap_or_default()))
}

/// Of a name that is there several times the first counts, as Gateway API has it.
fn first_parameter_fits(field: &FieldMatch, query: &str) -> bool {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut pairs = pairs.filter(|(name, _)| decoded(name) == *field.name);
    match (pairs.next(), &field.value) {
        (Some((_, value)), wanted) => value_fits(wanted, &decoded(value)),
        (None, wanted) => matches!(wanted, ValueMatch::Absent),
    }
}
