//! Routes as resources, and back.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::v1;
use v1::path_change::Change;
use v1::route::Action;
use v1::route_match::Path;

use super::decode::{Reason, bounded, filled, parse, text};
use crate::host::canonical;
use crate::route::{
    Backend, FieldMatch, HeaderChanges, Hedge, HostMatch, Mirror, PathChange, PathMatch, Redirect,
    Retry, Rewrite, Route, RouteAction, RouteMatch, Share, ValueMatch,
};
use crate::rules::Origin;

/// The longest list in a route.
pub(super) const MAX_LIST: usize = 1024;

pub(super) fn encode(order: u32, route: &Route) -> v1::Route {
    let millis = |time: Option<Duration>| time.map_or(0, whole_millis);
    let fault = (route.delay.is_some() || route.abort.is_some()).then(|| v1::Fault {
        delay_ms: route.delay.map_or(0, |(time, _)| whole_millis(time)),
        delay_share: route.delay.map_or(0, |(_, share)| share.millionths()),
        abort_status: route.abort.map_or(0, |(status, _)| status.into()),
        abort_share: route.abort.map_or(0, |(_, share)| share.millionths()),
    });
    let mirror = |mirror: &Mirror| v1::Mirror {
        service: mirror.service.to_string(),
        share: mirror.share.millionths(),
    };
    v1::Route {
        name: route.name.to_string(),
        order,
        service: route.service.to_string(),
        matches: route.matches.iter().map(encode_match).collect(),
        action: Some(encode_action(&route.action)),
        request_headers: encode_changes(&route.request_headers),
        response_headers: encode_changes(&route.response_headers),
        timeout_ms: millis(route.timeout),
        try_timeout_ms: millis(route.try_timeout),
        hedge: route
            .hedge
            .map(|hedge| v1::Hedge { after_ms: whole_millis(hedge.after), max: hedge.max }),
        retry: route.retry.as_ref().map(encode_retry),
        mirrors: route.mirrors.iter().map(mirror).collect(),
        fault,
        file: route.origin.file.to_string(),
        line: route.origin.line,
    }
}

pub(super) fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn encode_match(entry: &RouteMatch) -> v1::RouteMatch {
    let path = entry.path.as_ref().map(|path| match path {
        PathMatch::Exact(path) => Path::Exact(path.to_string()),
        PathMatch::Prefix(path) => Path::Prefix(path.to_string()),
        PathMatch::Regex(pattern) => Path::Regex(pattern.as_str().to_owned()),
    });
    v1::RouteMatch {
        hosts: entry.hosts.iter().map(ToString::to_string).collect(),
        sni: entry.sni.iter().map(ToString::to_string).collect(),
        path,
        method: entry.method.as_deref().unwrap_or_default().to_owned(),
        headers: entry.headers.iter().map(encode_field).collect(),
        query: entry.query.iter().map(encode_field).collect(),
    }
}

pub(super) fn encode_field(field: &FieldMatch) -> v1::FieldMatch {
    use v1::field_match::Value;
    let value = match &field.value {
        ValueMatch::Exact(value) => Value::Exact(value.to_string()),
        ValueMatch::Regex(pattern) => Value::Regex(pattern.as_str().to_owned()),
        ValueMatch::Present => Value::Present(true),
        ValueMatch::Absent => Value::Present(false),
    };
    v1::FieldMatch { name: field.name.to_string(), value: Some(value) }
}

fn encode_action(action: &RouteAction) -> Action {
    let some = |text: &Option<Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
    match action {
        RouteAction::Forward { to, rewrite } => Action::Forward(v1::Forward {
            to: to
                .iter()
                .map(|it| v1::Backend { service: it.service.to_string(), weight: it.weight })
                .collect(),
            host: some(&rewrite.host),
            path: rewrite.path.as_ref().map(encode_path),
        }),
        RouteAction::Redirect(redirect) => Action::Redirect(v1::Redirect {
            scheme: some(&redirect.scheme),
            host: some(&redirect.host),
            port: redirect.port.unwrap_or(0).into(),
            path: redirect.path.as_ref().map(encode_path),
            status: redirect.status.into(),
        }),
        RouteAction::Respond { status, body } => {
            Action::Respond(v1::DirectResponse { status: (*status).into(), body: body.to_string() })
        }
    }
}

fn encode_path(path: &PathChange) -> v1::PathChange {
    let change = match path {
        PathChange::Full(path) => Change::Full(path.to_string()),
        PathChange::Prefix(prefix) => Change::Prefix(prefix.to_string()),
    };
    v1::PathChange { change: Some(change) }
}

fn encode_changes(changes: &HeaderChanges) -> Option<v1::HeaderChanges> {
    let headers = |pairs: &[(Arc<str>, Arc<str>)]| {
        let pair = |(name, value): &(Arc<str>, Arc<str>)| v1::Header {
            name: name.to_string(),
            value: value.to_string(),
        };
        pairs.iter().map(pair).collect()
    };
    (!changes.is_empty()).then(|| v1::HeaderChanges {
        set: headers(&changes.set),
        add: headers(&changes.add),
        remove: changes.remove.iter().map(ToString::to_string).collect(),
    })
}

fn encode_retry(retry: &Retry) -> v1::Retry {
    v1::Retry {
        attempts: retry.attempts,
        on: retry.on.iter().map(ToString::to_string).collect(),
        budget: retry.budget.millionths(),
        backoff_ms: whole_millis(retry.backoff),
        non_idempotent: retry.non_idempotent,
    }
}

pub(super) fn decode(body: &v1::Route) -> Result<Route, Reason> {
    bounded("matches", body.matches.len(), MAX_LIST)?;
    bounded("mirrors", body.mirrors.len(), MAX_LIST)?;
    let time = |millis: u64| (millis != 0).then(|| Duration::from_millis(millis));
    let action = body.action.as_ref();
    let action =
        action.ok_or("action: it is empty, or of a kind that this version doesn't know")?;
    let fault = body.fault.unwrap_or_default();
    let abort_status = some_status(fault.abort_status)?;
    let mirror = |body: &v1::Mirror| -> Result<Mirror, Reason> {
        Ok(Mirror { service: parse("mirrors", &body.service)?, share: share(body.share)? })
    };
    Ok(Route {
        name: filled("name", &body.name)?,
        service: parse("service", &body.service)?,
        matches: body.matches.iter().map(decode_match).collect::<Result<_, _>>()?,
        action: decode_action(action)?,
        request_headers: decode_changes(body.request_headers.as_ref())?,
        response_headers: decode_changes(body.response_headers.as_ref())?,
        timeout: time(body.timeout_ms),
        try_timeout: time(body.try_timeout_ms),
        hedge: body.hedge.map(decode_hedge).transpose()?,
        retry: body.retry.as_ref().map(decode_retry).transpose()?,
        mirrors: body.mirrors.iter().map(mirror).collect::<Result<_, _>>()?,
        delay: time(fault.delay_ms)
            .map(|time| Ok::<_, Reason>((time, share(fault.delay_share)?)))
            .transpose()?,
        abort: abort_status
            .map(|status| Ok::<_, Reason>((status, share(fault.abort_share)?)))
            .transpose()?,
        origin: Origin { file: text("file", &body.file)?, line: body.line },
    })
}

pub(super) fn decode_match(body: &v1::RouteMatch) -> Result<RouteMatch, Reason> {
    bounded("sni", body.sni.len(), MAX_LIST)?;
    let path = body.path.as_ref().map(|path| match path {
        Path::Exact(path) => rooted(path).map(PathMatch::Exact),
        Path::Prefix(path) => rooted(path).map(PathMatch::Prefix),
        Path::Regex(regex) => parse("path", regex).map(PathMatch::Regex),
    });
    let method = (!body.method.is_empty()).then(|| text("method", &body.method));
    Ok(RouteMatch {
        hosts: decode_hosts(&body.hosts)?,
        sni: body.sni.iter().map(|it| host(it)).collect::<Result<_, _>>()?,
        path: path.transpose()?,
        method: method.transpose()?,
        headers: decode_fields("headers", &body.headers)?,
        query: decode_fields("query", &body.query)?,
    })
}

/// A host, or a suffix of them. One without a canonical form, which older topologies may have, is no
/// request's.
pub(super) fn host(host: &str) -> Result<HostMatch, Reason> {
    let host = filled("hosts", host)?;
    let form = |name: &str| canonical(name).map_or_else(|_| name.to_owned(), Cow::into_owned);
    Ok(match (host.strip_prefix("*."), host.strip_prefix('*')) {
        (Some(name), _) => HostMatch::Suffix(format!(".{}", form(name)).into()),
        (None, Some(suffix)) => HostMatch::Suffix(suffix.into()),
        (None, None) => HostMatch::Exact(form(&host).into()),
    })
}

pub(super) fn decode_hosts(hosts: &[String]) -> Result<Vec<HostMatch>, Reason> {
    bounded("hosts", hosts.len(), MAX_LIST)?;
    hosts.iter().map(|it| host(it)).collect()
}

pub(super) fn decode_fields(
    name: &str,
    fields: &[v1::FieldMatch],
) -> Result<Vec<FieldMatch>, Reason> {
    bounded(name, fields.len(), MAX_LIST)?;
    fields.iter().map(decode_field).collect()
}

fn decode_field(body: &v1::FieldMatch) -> Result<FieldMatch, Reason> {
    use v1::field_match::Value;
    let value = match body.value.as_ref().ok_or("a field match without a value")? {
        Value::Exact(value) => ValueMatch::Exact(text("value", value)?),
        Value::Regex(regex) => ValueMatch::Regex(parse("value", regex)?),
        Value::Present(true) => ValueMatch::Present,
        Value::Present(false) => ValueMatch::Absent,
    };
    Ok(FieldMatch { name: filled("name", &body.name)?, value })
}

fn decode_action(action: &Action) -> Result<RouteAction, Reason> {
    Ok(match action {
        Action::Forward(body) => {
            bounded("to", body.to.len(), MAX_LIST)?;
            let backend = |it: &v1::Backend| -> Result<Backend, Reason> {
                Ok(Backend { service: parse("to", &it.service)?, weight: it.weight })
            };
            let to: Vec<Backend> = body.to.iter().map(backend).collect::<Result<_, _>>()?;
            if to.iter().all(|backend| backend.weight == 0) {
                return Err("to: nobody has a weight".into());
            }
            let (host, path) = (some("host", &body.host)?, decode_path(body.path.as_ref())?);
            RouteAction::Forward { to, rewrite: Rewrite { host, path } }
        }
        Action::Redirect(body) => RouteAction::Redirect(Redirect {
            scheme: some("scheme", &body.scheme)?,
            host: some("host", &body.host)?,
            port: match u16::try_from(body.port) {
                Ok(0) => None,
                Ok(port) => Some(port),
                Err(_) => return Err(format!("port: {} is not 1 to 65535", body.port)),
            },
            path: decode_path(body.path.as_ref())?,
            status: status(body.status)?,
        }),
        Action::Respond(body) => {
            RouteAction::Respond { status: status(body.status)?, body: text("body", &body.body)? }
        }
    })
}

fn decode_path(body: Option<&v1::PathChange>) -> Result<Option<PathChange>, Reason> {
    let Some(body) = body else { return Ok(None) };
    Ok(Some(match body.change.as_ref().ok_or("path: a change without a path")? {
        Change::Full(path) => PathChange::Full(rooted(path)?),
        Change::Prefix(prefix) => PathChange::Prefix(rooted(prefix)?),
    }))
}

fn decode_changes(body: Option<&v1::HeaderChanges>) -> Result<HeaderChanges, Reason> {
    let Some(body) = body else { return Ok(HeaderChanges::default()) };
    let pairs = |headers: &[v1::Header]| -> Result<Vec<_>, Reason> {
        bounded("headers", headers.len(), MAX_LIST)?;
        let pair = |it: &v1::Header| Ok((filled("name", &it.name)?, text("value", &it.value)?));
        headers.iter().map(pair).collect()
    };
    bounded("remove", body.remove.len(), MAX_LIST)?;
    let remove = body.remove.iter().map(|name| filled("remove", name));
    Ok(HeaderChanges {
        set: pairs(&body.set)?,
        add: pairs(&body.add)?,
        remove: remove.collect::<Result<_, _>>()?,
    })
}

fn decode_retry(body: &v1::Retry) -> Result<Retry, Reason> {
    bounded("on", body.on.len(), MAX_LIST)?;
    bounded("attempts", usize::try_from(body.attempts).unwrap_or(usize::MAX), MAX_LIST)?;
    Ok(Retry {
        attempts: body.attempts,
        on: body.on.iter().map(|on| parse("on", on)).collect::<Result<_, _>>()?,
        budget: share(body.budget)?,
        backoff: Duration::from_millis(body.backoff_ms),
        non_idempotent: body.non_idempotent,
    })
}

fn decode_hedge(body: v1::Hedge) -> Result<Hedge, Reason> {
    if body.after_ms == 0 || !(1..=Hedge::MAX).contains(&body.max) {
        return Err("hedge: it has no time, or a number of requests that can't be".into());
    }
    Ok(Hedge { after: Duration::from_millis(body.after_ms), max: body.max })
}

pub(super) fn rooted(path: &str) -> Result<Arc<str>, Reason> {
    if !path.starts_with('/') {
        return Err(format!("path: {path:?} doesn't begin with '/'"));
    }
    text("path", path)
}

fn share(millionths: u32) -> Result<Share, Reason> {
    Share::new(millionths).ok_or_else(|| format!("{millionths} millionths are more than all"))
}

fn some(field: &str, value: &str) -> Result<Option<Arc<str>>, Reason> {
    if value.is_empty() { Ok(None) } else { text(field, value).map(Some) }
}

fn some_status(number: u32) -> Result<Option<u16>, Reason> {
    if number == 0 { Ok(None) } else { status(number).map(Some) }
}

fn status(number: u32) -> Result<u16, Reason> {
    let status = u16::try_from(number).ok().filter(|status| (200..=599).contains(status));
    status.ok_or_else(|| format!("{number} is no status of an answer"))
}
