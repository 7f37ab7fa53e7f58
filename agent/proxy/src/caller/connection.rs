//! One accepted connection: between whom it is, and what its requests share.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use isthmus_http::activity::Activity;
use isthmus_http::h1::Raw;
use isthmus_http::io::Stream;
use isthmus_http::limits::Author;
use isthmus_model::Name;
use isthmus_policy::Outcome;
use parking_lot::Mutex;

use super::context::Shared;
use super::entry::Entry;
use super::info::{CallerInfo, CallerInfoCache};
use crate::cluster::permits::{Caller, RequestQuota};
use crate::config::life::{Cut, Kept};
use crate::config::parties::{Parties, Side};
use crate::config::view::ProxySnapshot;
use crate::pool::progress::Progress;
use crate::telemetry::access_log::Record;
use crate::telemetry::series::SeriesCache;

/// State shared by the requests of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    /// The workload's address.
    pub(crate) local: IpAddr,
    /// The caller's address.
    pub(crate) peer: IpAddr,
    pub(crate) peer_port: u16,
    /// As header fields have it.
    pub(crate) peer_text: HeaderValue,
    /// Who the two were when the connection came. If a later revision sees somebody else in one of
    /// the addresses, the connection is cut.
    pub(crate) parties: Parties,
    /// Series of its requests.
    pub(crate) ledger: Arc<SeriesCache>,
    /// Its entry, if its client is outside the mesh.
    pub(crate) entry: Option<Entry>,
    pub(crate) activity: Arc<Activity>,
    /// Quota of concurrent requests of its caller.
    pub(crate) quota: RequestQuota,
    /// Left here by the request that turned the connection into a tunnel.
    tunnel: Mutex<Option<Box<Tunnel>>>,
    newest: CallerInfoCache,
}

/// A tunnel that both sides have agreed to. Its request stays under way until its end.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) application: Raw<Stream>,
    pub(crate) record: Record,
}

impl Connection {
    pub(crate) fn new(
        shared: Arc<Shared>,
        (local, remote): (IpAddr, SocketAddr),
        parties: Parties,
        entry: Option<Entry>,
    ) -> Self {
        let peer = remote.ip().to_canonical();
        let quota = match entry {
            Some(_) => shared.visitors.quota(Caller::visitor(peer)),
            None => shared.requests.quota(Caller::member(peer)),
        };
        Self {
            local,
            peer,
            peer_port: remote.port(),
            // Digits, dots and colons are always a value.
            peer_text: HeaderValue::try_from(peer.to_string())
                .unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            ledger: Arc::new(SeriesCache::new(Arc::clone(&shared.metrics), parties.clone())),
            parties,
            entry,
            activity: Arc::new(Activity::new(Arc::clone(&shared.clock))),
            quota,
            tunnel: Mutex::new(None),
            newest: CallerInfoCache::default(),
            shared,
        }
    }

    /// The caller whose quota it uses.
    pub(crate) fn caller(&self) -> Caller {
        match self.entry {
            Some(_) => Caller::visitor(self.peer),
            None => Caller::member(self.peer),
        }
    }

    /// Author of the request heads on it.
    pub(crate) const fn author(&self) -> Author {
        match self.parties.side {
            Side::Client => Author::Anybody,
            Side::Server => Author::Proxy,
        }
    }

    /// The port that the caller believes to speak to.
    pub(crate) fn asked_port(&self) -> u16 {
        self.entry.as_ref().map_or(self.parties.port, |entry| entry.port)
    }

    /// The newest view.
    pub(crate) fn view(&self) -> Arc<ProxySnapshot> {
        Arc::clone(&self.shared.view.borrow())
    }

    /// Its caller information in a snapshot.
    pub(crate) fn caller_info(&self, view: &Arc<ProxySnapshot>) -> Arc<CallerInfo> {
        self.newest.of(self, view)
    }

    /// Identities of both ends in a snapshot; none if an address now belongs to another identity.
    pub(crate) fn parties_in(&self, view: &ProxySnapshot) -> Option<Parties> {
        if self.entry.is_some() {
            // Its ports are no part of who a gateway is.
            let now = view.visitors(self.parties.service);
            return now.filter(|now| now.from == self.parties.from);
        }
        let port = Some(self.parties.port);
        view.parties(self.local, self.peer, port).filter(|now| *now == self.parties)
    }

    /// Whether the newest view no longer lets the caller in at all.
    pub(crate) fn is_denied(&self) -> bool {
        self.newest.forget();
        let Some(parties) = self.parties_in(&self.view()) else { return true };
        // What a gateway's clients may do is judged by request.
        self.entry.is_none() && self.view().judge(&parties, None).outcome == Outcome::Deny
    }

    /// Cuts requests that the newest view denies. Says whether there were any.
    pub(crate) fn cut_denied(&self) -> bool {
        let view = self.view();
        self.ledger.live.cut_any(|it| it.life.judge(&view, |kept| self.is_denied_now(&view, kept)))
    }

    /// Cuts requests whose time is over. Says whether there were any.
    pub(crate) fn cut_late(&self, now: SystemTime) -> bool {
        let view = self.view();
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let is_denied = |kept: &Kept| self.is_denied_now(&view, kept);
        self.ledger.live.cut_any(|it| it.life.check(&view, now, self.lateness(it), is_denied))
    }

    /// Whether a request lasts too long, or its body doesn't come.
    fn lateness(&self, progress: &Progress) -> Option<Cut> {
        let limits = &self.shared.limits;
        if progress.started().elapsed() > limits.request {
            return Some(Cut::Long);
        }
        let is_slow = !progress.life.is_answered() && progress.waits() > limits.body_idle;
        is_slow.then_some(Cut::Slow)
    }

    /// Whether a view denies a request under way.
    fn is_denied_now(&self, view: &Arc<ProxySnapshot>, kept: &Kept) -> bool {
        let Some(parties) = self.parties_in(view) else { return true };
        let caller_info = self.caller_info(view);
        kept.is_denied(view, parties, caller_info.source_host.as_ref().map_or("", Name::as_str))
    }

    /// Marks the caller's socket for a reset, since its one request was cut.
    pub(crate) fn on_cut(&self) {
        if self.activity.cut() {
            self.shared.metrics.cut.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Marks the caller's socket for a reset, and says so.
    pub(crate) fn on_revoked(&self) {
        if self.activity.cut() {
            self.shared.metrics.cut.fetch_add(1, Ordering::Relaxed);
            tracing::info!(
                from = %self.parties.from,
                to = %self.parties.to,
                "Cut a connection that policy no longer allows"
            );
        }
    }

    pub(crate) fn leave_tunnel(&self, tunnel: Tunnel) {
        *self.tunnel.lock() = Some(Box::new(tunnel));
    }

    pub(crate) fn take_tunnel(&self) -> Option<Box<Tunnel>> {
        self.tunnel.lock().take()
    }
}
