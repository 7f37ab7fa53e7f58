//! `[jwt.NAME]`, and `jwt` in a rule's match.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::route;
use crate::jwt::{JwtMatch, JwtProvider, KeySource, TokenPlace};
use crate::name::Name;
use crate::route::FieldMatch;
use crate::topology::read::{
    At, Context, Entry, Located, Read, Report, Reported, Schema, Table, all, quote,
};
use crate::topology::values::{self, fields};

pub(crate) const JWT: Schema = &[
    ("issuer", "issuer = \"https://login.example.com\""),
    ("audiences", "audiences = [\"api\"]"),
    ("jwks", "jwks = \"/etc/isthmus/login-keys.json\""),
    ("header", "header = \"authorization\""),
    ("cookie", "cookie = \"session\""),
    ("leeway", "leeway = \"30s\""),
];

pub(crate) const MATCH: Schema =
    &[("provider", "provider = \"login\""), ("claims", "claims = { role = \"admin\" }")];

const DEFAULT_LEEWAY: Duration = Duration::from_secs(30);
const MOST_LEEWAY: Duration = Duration::from_secs(600);

pub(crate) fn provider(
    name: &str,
    table: &Table<'_>,
    report: &mut Report<'_>,
) -> Read<Arc<JwtProvider>> {
    let name = name.parse::<Name>().map_err(|_| Reported);
    let issuer = table.required("issuer", report).and_then(|entry| text(entry, report));
    let audiences = table.optional("audiences", |entry| {
        all(entry.one_or_more(report)?, |one| plain(entry.key, one, report))
    });
    let keys = table.required("jwks", report).and_then(|entry| keys(entry, report));
    let header =
        table.optional("header", |entry| fields::header_name(entry.string(report)?, report));
    let cookie =
        table.optional("cookie", |entry| fields::header_name(entry.string(report)?, report));
    let leeway = table.optional("leeway", |entry| leeway(entry, report));
    let place = match (header?, cookie?) {
        (Some(_), Some(_)) => {
            let at = table.get("cookie").map_or(table.at, |entry| entry.key_at);
            let help = "keep `header` or `cookie`";
            return Err(report.error(at, "a token is in one place", help));
        }
        (Some(header), None) => TokenPlace::Header(header),
        // Cookies' names have capitals.
        (None, Some(_)) => {
            let written = table.get("cookie").and_then(|entry| entry.text());
            TokenPlace::Cookie(written.map_or("", |text| text.value).into())
        }
        (None, None) => TokenPlace::Header("authorization".into()),
    };
    Ok(Arc::new(JwtProvider {
        name: name?,
        issuer: issuer?,
        audiences: audiences?.unwrap_or_default(),
        keys: keys?,
        place,
        leeway: leeway?.unwrap_or(DEFAULT_LEEWAY),
    }))
}

fn text(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Arc<str>> {
    let text = entry.string(report)?;
    plain(entry.key, text, report)
}

fn plain(key: &str, text: Located<&str>, report: &mut Report<'_>) -> Read<Arc<str>> {
    let fine = !text.value.is_empty() && text.value.len() <= 1024;
    if fine && !text.value.contains(char::is_control) {
        return Ok(text.value.into());
    }
    let message = format!("`{key}` can't be {}", quote(text.value));
    Err(report.error(text.at, message, "write it exactly as the tokens have it"))
}

fn keys(entry: Entry<'_>, report: &mut Report<'_>) -> Read<KeySource> {
    let text = entry.string(report)?;
    let url = text.value.starts_with("https://") || text.value.starts_with("http://");
    if url && text.value.len() > 10 && text.value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(KeySource::Url(text.value.into()));
    }
    if Path::new(text.value).is_absolute() && !text.value.contains(char::is_control) {
        return Ok(KeySource::File(text.value.into()));
    }
    let message = format!("`jwks` can't be {}", quote(text.value));
    let help = "write the URL of the key set, or the absolute path of a file that each host has";
    Err(report.error(text.at, message, help))
}

fn leeway(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Duration> {
    let time = values::duration(entry, report)?;
    if time <= MOST_LEEWAY {
        return Ok(time);
    }
    let message = format!("a leeway of {time:?} lets tokens live too long");
    Err(report.error(entry.at, message, "write a time up to \"10m\""))
}

/// `jwt` in a match. The provider is looked up once all are read; until then it is only a name.
pub(crate) fn matching(
    entry: Entry<'_>,
    kind: &'static str,
    report: &mut Report<'_>,
) -> Read<(JwtMatch, At)> {
    let table = entry.table(Context::Element("jwt", kind), MATCH, report)?;
    let provider = table.required("provider", report).and_then(|entry| {
        let text = entry.string(report)?;
        Ok(Located { value: values::name(text, report)?, at: text.at })
    });
    let claims = table.optional("claims", |entry| claims(entry, report));
    let provider = provider?;
    let unknown = JwtProvider {
        name: provider.value,
        issuer: "".into(),
        audiences: Vec::new(),
        keys: KeySource::Url("".into()),
        place: TokenPlace::Header("".into()),
        leeway: Duration::ZERO,
    };
    let claims = claims?.unwrap_or_default();
    Ok((JwtMatch { provider: Arc::new(unknown), claims }, provider.at))
}

fn claims(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Vec<FieldMatch>> {
    let entries = entry.entries(report)?;
    if entries.is_empty() {
        return Err(entry.empty(report));
    }
    all(entries, |(name, value)| {
        let name = fields::parameter(name, report)?;
        Ok(FieldMatch { name, value: route::value_match(value, false, report)? })
    })
}
