//! Facts of a request: what its log line, its series and its span say.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use http::uri::PathAndQuery;
use isthmus_http::trace::Trace;
use isthmus_model::{Identity, Name};

use super::super::metrics::Ruling;
use super::super::refused::RefusedRequest;
use super::super::rollout_traffic::SERVED;
use super::super::series::{Ending, StatusClass};
use super::super::tap::{Finished, FinishedTrace};
use super::super::timing::Parts;
use super::{Decider, Facts, MAX_PATH_BYTES};
use crate::config::parties::Side;

impl Drop for Facts {
    fn drop(&mut self) {
        self.ledger.live.remove(&self.progress);
    }
}

impl Facts {
    /// Neither it nor its answer says that anything is wrong.
    pub(super) fn is_ordinary(&self) -> bool {
        let fails = |status: StatusCode| status.is_client_error() || status.is_server_error();
        self.completed && self.ruling == Ruling::Allow && !self.status.is_some_and(fails)
    }

    /// Ruling and decider as shown to people: this side lets pass what the other side refuses.
    pub(super) const fn said(&self) -> (Ruling, &Decider) {
        match &self.refused_there {
            Some(decider) => (Ruling::Deny, decider),
            None => (self.ruling, &self.decider),
        }
    }

    /// As the log shows it. hyper lets bytes beyond ASCII pass in paths, so cut at a character.
    pub(super) fn path(&self) -> &str {
        let path = self.path.as_ref().map_or("/", PathAndQuery::path);
        &path[..path.floor_char_boundary(MAX_PATH_BYTES)]
    }

    /// Gives the status, too, and whether the server is to blame for nothing.
    pub(super) fn count(&self, took: Duration) -> (Option<u16>, bool) {
        if self.ruling == Ruling::Deny {
            self.ledger.metrics().count_denial();
        }
        let class = self.status.map_or(StatusClass::None, StatusClass::from);
        let failed = self.failed || matches!(class, StatusClass::ServerError | StatusClass::None);
        // What policy refuses says nothing of how well a backend does: it never got there.
        if self.said().0 != Ruling::Deny {
            self.measure(failed, took);
        }
        self.ledger.series(&self.way, self.ruling).count(&Ending {
            status: class,
            success: !failed,
            retries: self.tries.saturating_sub(1),
            request_bytes: self.progress.bytes.load(Ordering::Relaxed),
            response_bytes: self.answer_bytes,
            took,
        });
        (self.status.map(|status| status.as_u16()), !failed)
    }

    /// For rollouts: as a caller's, and as one that a service here was asked.
    pub(super) fn measure(&self, failed: bool, took: Duration) {
        let measured = self.ledger.metrics().measured();
        if let (Some(route), Some(backend)) = (self.way.route(), self.way.backend()) {
            measured.count(route, backend, failed, took);
        }
        match (self.ledger.parties.side, &self.ledger.parties.to) {
            (Side::Server, Identity::Service { name, .. }) => {
                measured.count(SERVED, name.as_str(), failed, took);
            }
            // It doesn't leave the host: there is no server's side.
            (Side::Client, _) if self.is_here => {
                if let Some(backend) = self.way.backend() {
                    measured.count(SERVED, backend, failed, took);
                }
            }
            (Side::Server | Side::Client, _) => {}
        }
    }

    pub(super) fn as_refused(&self) -> RefusedRequest {
        let (rule, origin) = self.said().1.words();
        let judged_at = self.refused_there.as_ref().and(self.host.as_ref());
        RefusedRequest {
            at: SystemTime::now(),
            request_id: self.id.to_string(),
            side: self.ledger.parties.side,
            from: self.ledger.parties.from.to_string(),
            to: self.ledger.parties.to.to_string(),
            source: self.ends[0],
            method: self.method.clone(),
            path: self.path().to_owned(),
            status: self.status.map(|status| status.as_u16()),
            rule: rule.to_owned(),
            origin: origin.cloned(),
            judged_at: judged_at.map(ToString::to_string).unwrap_or_default(),
            process: self.process.clone(),
        }
    }

    pub(super) fn finished(&self, took: Duration, parts: Parts, success: bool) -> Finished {
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let parties = &self.ledger.parties;
        Finished {
            request_id: self.id.to_string(),
            side: parties.side,
            source: parties.from.to_string(),
            destination: parties.to.to_string(),
            route: text(self.way.route()),
            backend: text(self.way.backend()),
            host: text(self.host.as_ref().map(Name::as_str)),
            ruling: self.said().0,
            rule: self.said().1.words().0.to_owned(),
            method: self.method.clone(),
            path: self.path().to_owned(),
            version: self.version,
            status: self.status.map(|status| status.as_u16()),
            success,
            tries: self.tries,
            request_bytes: self.progress.bytes.load(Ordering::Relaxed),
            response_bytes: self.answer_bytes,
            began: SystemTime::now() - took,
            took,
            parts,
            trace: self.trace.map(|Trace { id, parent, span }| FinishedTrace { id, parent, span }),
        }
    }
}

/// By which the decider of a refusal is known to an agent that has the same rules (FNV-1a).
pub(super) fn mark_of(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
