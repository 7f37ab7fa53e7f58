//! What a `[[test]]` says of the request that it asks about.

use std::fmt;
use std::sync::Arc;

use super::declare::all;
use super::reader::{At, Context, Entry, Located, Read, Report, Reported, Schema, Table};
use super::{fields, values};
use crate::host::canonical;
use crate::name::Name;

pub(super) const JWT: Schema =
    &[("provider", "provider = \"login\""), ("claims", "claims = { role = \"admin\" }")];

type Pairs = Vec<(Arc<str>, Arc<str>)>;

/// A request that a test asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRequest {
    /// `method`
    pub method: Arc<str>,
    /// `path`
    pub path: Arc<str>,
    /// `host`; empty unless given.
    pub host: Arc<str>,
    /// `header`, by lower-case name.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
    /// `query`, decoded.
    pub query: Vec<(Arc<str>, Arc<str>)>,
    /// `jwt`
    pub jwt: Option<TestToken>,
}

/// A token that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestToken {
    /// `provider`
    pub provider: Name,
    /// `claims`
    pub claims: Vec<(Arc<str>, Arc<str>)>,
}

/// As in `GET /accounts/1 header x-a=1`.
impl fmt::Display for TestRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, path, host, headers, query, jwt } = self;
        write!(f, "{method} {path}")?;
        if !host.is_empty() {
            write!(f, " host {host}")?;
        }
        headers.iter().try_for_each(|(name, value)| write!(f, " header {name}={value}"))?;
        query.iter().try_for_each(|(name, value)| write!(f, " query {name}={value}"))?;
        let Some(TestToken { provider, claims }) = jwt else { return Ok(()) };
        write!(f, " jwt {provider}")?;
        claims.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// The request, and where it names a provider.
pub(super) fn request(
    table: &Table<'_>,
    report: &mut Report<'_>,
) -> Read<Option<(TestRequest, Option<At>)>> {
    let method = table.optional("method", |entry| {
        let text = entry.string(report)?;
        values::method(text, report).map(|()| Arc::from(text.value))
    });
    let path = table.optional("path", |entry| {
        let text = entry.string(report)?;
        values::path(text, false, report).map(|()| Arc::from(text.value))
    });
    let host = table.optional("host", |entry| {
        let text = entry.string(report)?;
        // As requests write it, which need not be the one form.
        if let Ok(form) = canonical(text.value) {
            return Ok(Arc::from(&*form));
        }
        fields::host(text, report).map(|()| Arc::from(text.value))
    });
    let headers = table.optional("header", |entry| {
        pairs(entry, report, |(key, text), report| {
            fields::header_value(text, report)?;
            fields::header_name(key, report)
        })
    });
    let query = table.optional("query", |entry| {
        pairs(entry, report, |(key, _), report| fields::parameter(key, report))
    });
    let jwt = table.optional("jwt", |entry| jwt(entry, report));
    let (method, path, jwt) = (method?, path?, jwt?);
    let (host, headers, query) = (host?, headers?, query?);
    let (method, path) = match (method, path) {
        (Some(method), Some(path)) => (method, path),
        (Some(_), None) => return Err(half("method", "path", "path = \"/\"", table, report)),
        (None, Some(_)) => return Err(half("path", "method", "method = \"GET\"", table, report)),
        (None, None) => {
            let mut more = ["host", "header", "query", "jwt"].into_iter();
            return match more.find(|key| table.get(key).is_some()) {
                Some(has) => Err(half(has, "method", "method = \"GET\"", table, report)),
                None => Ok(None),
            };
        }
    };
    let at = jwt.as_ref().map(|(_, _, at)| *at);
    let request = TestRequest {
        method,
        path,
        host: host.unwrap_or_default(),
        headers: headers.unwrap_or_default(),
        query: query.unwrap_or_default(),
        jwt: jwt.map(|(provider, claims, _)| TestToken { provider, claims }),
    };
    Ok(Some((request, at)))
}

fn pairs(
    entry: Entry<'_>,
    report: &mut Report<'_>,
    name: impl Fn((Located<&str>, Located<&str>), &mut Report<'_>) -> Read<Arc<str>>,
) -> Read<Pairs> {
    all(entry.entries(report)?, |(key, value)| {
        let text = value.string(report)?;
        Ok((name((key, text), report)?, text.value.into()))
    })
}

fn jwt(entry: Entry<'_>, report: &mut Report<'_>) -> Read<(Name, Pairs, At)> {
    let table = entry.table(Context::Element("jwt", "test"), JWT, report)?;
    let provider = table.required("provider", report).and_then(|entry| {
        let text = entry.string(report)?;
        Ok(Located { value: values::name(text, report)?, at: text.at })
    });
    let claims = table.optional("claims", |entry| {
        pairs(entry, report, |(key, _), report| fields::parameter(key, report))
    });
    let provider = provider?;
    Ok((provider.value, claims?.unwrap_or_default(), provider.at))
}

fn half(
    has: &'static str,
    lacks: &str,
    example: &str,
    table: &Table<'_>,
    report: &mut Report<'_>,
) -> Reported {
    let at = table.get(has).map_or(table.at, |entry| entry.key_at);
    let message = format!("a test with `{has}` needs `{lacks}` too");
    report.error(at, message, format!("add `{example}`"))
}
