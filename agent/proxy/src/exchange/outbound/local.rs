//! Requests to a workload of this host: they needn't leave it to be judged.

use std::sync::{Arc, OnceLock};

use http::HeaderMap;
use http::request::Parts;
use isthmus_http::headers;
use isthmus_model::ServiceId;
use isthmus_policy::Outcome;

use crate::caller::authorize::{ask, tokens};
use crate::caller::connection::Connection;
use crate::cluster::Cluster;
use crate::cluster::endpoint::Endpoint;
use crate::config::life::{Kept, Life};
use crate::config::parties::Parties;
use crate::config::ratelimit::TooMany;
use crate::config::view::ProxySnapshot;
use crate::pool::Target;
use crate::telemetry::access_log::Decider;

/// The caller isn't of the mesh any more, or the service isn't.
pub(super) const NOBODY: &str = "the address now belongs to another identity";

/// Why a request isn't sent.
pub(super) enum Refused {
    /// By this.
    Denied(Decider),
    TooMany(TooMany),
}

impl Refused {
    /// Not by a rule.
    pub(super) fn because(words: &str) -> Self {
        Self::Denied(Decider::Words(words.to_owned()))
    }
}

/// Notes of a request that passes. Copies have none.
#[derive(Clone, Copy)]
pub(super) struct Notes<'a> {
    pub(super) life: &'a Life,
    /// Decider that would have refused it without audit mode.
    pub(super) audited: &'a OnceLock<Decider>,
}

/// Caller and called service if the request is allowed, else the decider that forbids it.
pub(super) fn passes(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    service: ServiceId,
    head: &Parts,
    notes: Option<Notes<'_>>,
) -> Result<Parties, Refused> {
    let parties = view.parties_here(&connection.parties, service);
    let parties = parties.ok_or_else(|| Refused::because(NOBODY))?;
    let tokens = tokens(connection, view, service, head)
        .map_err(|error| Refused::because(&format!("token: {error}")))?;
    let verdict = ask(connection, view, head, &tokens, |asked| view.judge(&parties, Some(asked)));
    if verdict.outcome != Outcome::Allow {
        return Err(Refused::Denied(Decider::Rule(Arc::clone(&view.policy), verdict.decided_by)));
    }
    if let Some(Notes { life, audited }) = notes {
        life.keep(Kept::of(view, service, head, &tokens));
        if let Some(denier) = verdict.would_deny {
            audited.get_or_init(|| Decider::Rule(Arc::clone(&view.policy), denier));
        }
    }
    Ok(parties)
}

/// Gives back what [`admit`] took of the service's limits, for a request that found no connection.
pub(super) fn give_back(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    service: ServiceId,
    head: &Parts,
) {
    if let Some(parties) = view.parties_here(&connection.parties, service) {
        view.limits.give_back(&parties, head);
    }
}

/// Judges a request to a service here, as the server's side does for callers of other hosts, and
/// tells the application who calls.
pub(super) fn admit(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    (service, cluster, endpoint): (ServiceId, &Cluster, &Endpoint),
    head: &Parts,
    fields: &mut HeaderMap,
    notes: Option<Notes<'_>>,
) -> Result<Target, Refused> {
    let parties = passes(connection, view, service, head, notes)?;
    view.limits.admit(&parties, head).map_err(Refused::TooMany)?;
    let from = &connection.caller_info(view).identity;
    match &connection.entry {
        Some(_) => headers::identify(fields, from),
        None => headers::introduce(fields, from, &connection.peer_text),
    }
    let port = connection.parties.port_of(service).unwrap_or(cluster.port);
    let address = (endpoint.address, port).into();
    let caller = view.speaks_from(&connection.parties, endpoint.address.is_ipv4());
    let caller = caller.ok_or_else(|| Refused::because(NOBODY))?;
    let application = view.application(service, Some(port));
    Ok(Target {
        address,
        source: None,
        introduce: application.proxy_protocol.map(|version| (version, caller)),
        external: None,
        host: None,
        caller: Some(connection.parties.caller),
        trailers: application.trailers,
        listens: view.listens(service, address),
        shown: view.shown(application, caller),
    })
}
