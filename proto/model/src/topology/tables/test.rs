//! `[[test]]`, each by itself.

use std::sync::Arc;

use super::policy::{action, numbers, subject, title};
use super::ports;
use crate::host::canonical;
use crate::name::Name;
use crate::rules::{Layer4, Subject};
use crate::topology::decl::{TestDecl, TestRequest, TestToken};
use crate::topology::read::{
    At, Context, Entry, Located, Read, Report, Reported, Schema, Table, all,
};
use crate::topology::values::{self, fields};

pub(crate) const TEST: Schema = &[
    ("name", "name = \"web can't reach the ledger\""),
    ("from", "from = \"service:web\""),
    ("to", "to = \"service:ledger\""),
    ("port", "port = \"tcp/22\""),
    ("method", "method = \"GET\""),
    ("path", "path = \"/accounts/1\""),
    ("host", "host = \"api.example.com\""),
    ("header", "header = { x-canary = \"1\" }"),
    ("query", "query = { version = \"2\" }"),
    ("jwt", "jwt = { provider = \"login\", claims = { role = \"admin\" } }"),
    ("expect", "expect = \"deny\""),
];

pub(crate) const JWT: Schema =
    &[("provider", "provider = \"login\""), ("claims", "claims = { role = \"admin\" }")];

type Pairs = Vec<(Arc<str>, Arc<str>)>;

/// A test, and the places that checks between tables point at.
#[derive(Debug)]
pub(crate) struct TestDraft {
    pub(crate) decl: TestDecl,
    pub(crate) name: At,
    pub(crate) from: At,
    pub(crate) to: At,
    pub(crate) request: At,
    /// Of the provider of its token.
    pub(crate) provider: Option<At>,
    /// Its `port`, if that is a name.
    pub(crate) port_name: Option<Located<Name>>,
}

pub(crate) fn test(table: &Table<'_>, report: &mut Report<'_>) -> Read<TestDraft> {
    let name = table.required("name", report).and_then(|entry| title("test", entry, report));
    let from = table.required("from", report).and_then(|entry| one(entry, report));
    let to = table.required("to", report).and_then(|entry| one(entry, report));
    let asked = table.optional("port", |entry| ports::asked(entry, numbers::<Layer4>, report));
    let request = request(table, report);
    let expect = table.required("expect", report).and_then(|entry| action(entry, report));
    let (name, from, to) = (name?, from?, to?);
    let (request, provider) = request?.unzip();
    let (layer4, port_name) = asked?.unwrap_or_default();
    let decl = TestDecl {
        name: name.value,
        from: from.value,
        to: to.value,
        layer4,
        request,
        expect: expect?,
        origin: report.origin(table.at),
    };
    let request =
        table.get("path").or_else(|| table.get("method")).map_or(table.at, |entry| entry.key_at);
    let provider = provider.flatten();
    Ok(TestDraft { decl, name: name.at, from: from.at, to: to.at, request, provider, port_name })
}

/// One service, host or device: a test asks about a single flow.
fn one(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Located<Subject>> {
    let subject = subject(entry.string(report)?, report)?;
    match subject.value {
        Subject::Service(_) | Subject::Host(_) | Subject::Device(_) => Ok(subject),
        Subject::Any
        | Subject::AnyService
        | Subject::Namespace(_)
        | Subject::AnyHost
        | Subject::AnyDevice => {
            let message =
                format!("a test can't ask about \"{}\": it is more than one", subject.value);
            let help = "name one, such as \"service:web\", \"host:app-1\" or \"device:press\"";
            Err(report.error(subject.at, message, help))
        }
    }
}

/// The request, and where it names a provider.
fn request(table: &Table<'_>, report: &mut Report<'_>) -> Read<Option<(TestRequest, Option<At>)>> {
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
