//! Authorization of requests.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use http::Uri;
use http::request::Parts;
use http::uri::PathAndQuery;
use isthmus_http::headers::host_of;
use isthmus_model::{Name, ServiceId};
use isthmus_policy::path::forwarded;
use isthmus_policy::{Outcome, Request, Token};

use super::connection::Connection;
use crate::config::fields::Lines;
use crate::config::jwt::{self, TokenError};
use crate::config::life::Kept;
use crate::config::parties::Parties;
use crate::config::view::ProxySnapshot;
use crate::telemetry::access_log::{Decider, Record};
use crate::telemetry::metrics::Ruling;

/// Puts a request into policy's words.
pub(crate) fn ask<R>(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    head: &Parts,
    tokens: &[Token],
    about: impl FnOnce(Request<'_>) -> R,
) -> R {
    let caller_info = connection.caller_info(view);
    about(Request {
        method: head.method.as_str(),
        path: head.uri.path(),
        host: host_of(head),
        query: head.uri.query().unwrap_or_default(),
        headers: &Lines(&head.headers),
        tokens,
        source_host: caller_info.source_host.as_ref().map_or("", Name::as_str),
    })
}

/// The tokens that a request to a service has.
///
/// # Errors
///
/// Why one of them isn't believed.
pub(crate) fn tokens(
    connection: &Connection,
    view: &ProxySnapshot,
    service: ServiceId,
    head: &Parts,
) -> Result<Vec<Token>, TokenError> {
    let Some(providers) = view.providers.get(&service) else { return Ok(Vec::new()) };
    jwt::tokens(providers, &connection.shared.keys, &head.headers, SystemTime::now())
}

/// Brings a request's path into the form in which a service has it judged and passed on. None if it
/// refuses it.
pub(crate) fn normalize_path(
    view: &ProxySnapshot,
    service: ServiceId,
    head: &mut Parts,
) -> Option<()> {
    let path = head.uri.path();
    if path == "*" {
        return Some(());
    }
    let mode = view.snapshot.services.get(&service)?.paths;
    let Cow::Owned(mut path) = forwarded(mode, path).ok()? else { return Some(()) };
    if let Some(query) = head.uri.query() {
        path.push('?');
        path.push_str(query);
    }
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    head.uri = Uri::from_parts(parts).ok()?;
    Some(())
}

/// Whether a request may pass. The record says by what.
pub(crate) fn is_authorized(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    head: &Parts,
    tokens: &[Token],
    record: &mut Record,
) -> bool {
    if !connection.caller_info(view).holds {
        let words = "the address now belongs to another identity".to_owned();
        record.decide(Ruling::Deny, Decider::Words(words));
        return false;
    }
    is_allowed(connection, view, &connection.parties, head, tokens, record)
}

/// Judges a request between two parties.
pub(crate) fn is_allowed(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    parties: &Parties,
    head: &Parts,
    tokens: &[Token],
    record: &mut Record,
) -> bool {
    let verdict = ask(connection, view, head, tokens, |asked| view.judge(parties, Some(asked)));
    let ruling = match verdict.outcome {
        // `Inspect` answers only questions without a request.
        Outcome::Deny | Outcome::Inspect => Ruling::Deny,
        Outcome::Allow if verdict.audited() => Ruling::Audit,
        Outcome::Allow => Ruling::Allow,
    };
    // Of an audited request the log names who would have refused it.
    let decided_by = verdict.would_deny.unwrap_or(verdict.decided_by);
    record.decide(ruling, Decider::Rule(Arc::clone(&view.policy), decided_by));
    if ruling == Ruling::Deny {
        return false;
    }
    record.life().keep(Kept::of(view, parties.service, head, tokens));
    true
}
