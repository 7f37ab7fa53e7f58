//! Whether a request is what an entry of `match` asks for, its host and path aside.

use http::HeaderMap;
use isthmus_model::route::{FieldMatch, RouteMatch, ValueMatch};
use isthmus_policy::fields::{Readings, decoded, header_fits, value_fits};

use crate::judge::Lines;

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
