//! Stream record, which is logged when the stream ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use isthmus_policy::{Outcome, Verdict};

use super::Seen;
use super::dial::Upstream;
use crate::caller::connection::Connection;
use crate::config::view::ProxySnapshot;
use crate::telemetry::metrics::Ruling;
use crate::telemetry::streams::{Carried, StreamLabels};

/// Dropping it writes a line into the access log: so no end is forgotten.
pub(super) struct Record<'a> {
    connection: &'a Connection,
    began: Instant,
    seen: &'a Seen,
    ruling: Ruling,
    rule: String,
    origin: Option<String>,
    pub(super) route: Option<Arc<str>>,
    backend: Option<String>,
    host: Option<String>,
    /// Error with which it ended, if any.
    pub(super) problem: Option<String>,
    pub(super) carried: Carried,
}

impl<'a> Record<'a> {
    /// Of a stream that was just judged.
    pub(super) fn new(
        connection: &'a Connection,
        began: Instant,
        seen: &'a Seen,
        (view, verdict): (&ProxySnapshot, Verdict),
    ) -> Self {
        let ruling = match verdict.outcome {
            Outcome::Deny | Outcome::Inspect => Ruling::Deny,
            Outcome::Allow if verdict.audited() => Ruling::Audit,
            Outcome::Allow => Ruling::Allow,
        };
        let by = verdict.would_deny.unwrap_or(verdict.decided_by);
        let decision = view.policy.describe_decider(by);
        let labels = StreamLabels {
            service: connection.parties.to.name().to_string(),
            side: connection.parties.side.as_str(),
            carries: seen.word(),
            ruling,
        };
        Self {
            connection,
            began,
            seen,
            ruling,
            rule: decision.name.to_owned(),
            origin: decision.origin.map(ToString::to_string),
            route: None,
            backend: None,
            host: None,
            problem: None,
            carried: Carried::new(connection.shared.metrics.streams.of(labels)),
        }
    }

    pub(super) fn is_allowed(&self) -> bool {
        self.ruling != Ruling::Deny
    }

    /// Destination, at the client's side.
    pub(super) fn take(&mut self, view: &ProxySnapshot, upstream: &Upstream) {
        let Some(host) = upstream.host else { return };
        let service = view.snapshot.services.get(&upstream.service);
        self.backend = service.map(|it| it.name.to_string());
        self.host = view.snapshot.hosts.get(&host).map(|it| it.name.to_string());
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let Connection { parties, peer, peer_port, .. } = self.connection;
        let caller = SocketAddr::new(*peer, *peer_port);
        tracing::info!(
            target: "isthmus::access",
            from = %parties.from,
            to = %parties.to,
            verdict = %self.ruling,
            rule = self.rule,
            origin = self.origin,
            source = (self.ruling == Ruling::Deny).then(|| tracing::field::display(caller)),
            route = self.route.as_deref(),
            backend = self.backend,
            host = self.host,
            carries = self.seen.word(),
            sni = self.seen.server_name(),
            duration_ms = self.began.elapsed().as_secs_f64() * 1000.0,
            bytes = self.carried.bytes.down.load(Ordering::Relaxed),
            request_bytes = self.carried.bytes.up.load(Ordering::Relaxed),
            problem = self.problem,
            "connection"
        );
    }
}
