//! The last requests that policy refused, for whoever asks about them later.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::SystemTime;

use http::Method;
use isthmus_model::Origin;
use parking_lot::Mutex;

use super::processes::Process;
use crate::config::parties::Side;

/// More are in the access log.
const KEPT: usize = 256;
/// Of a path.
const PATH_BYTES: usize = 256;

/// A request that policy refused.
#[derive(Clone, Debug, PartialEq)]
pub struct RefusedRequest {
    /// When it ended.
    pub at: SystemTime,
    /// As the access log names it.
    pub request_id: String,
    /// Observing side: the caller's agent, or the service's.
    pub side: Side,
    /// Caller: "service:client".
    pub from: String,
    /// Whom.
    pub to: String,
    /// From where.
    pub source: SocketAddr,
    /// `GET`
    pub method: Method,
    /// Without its query.
    pub path: String,
    /// Status that the caller got.
    pub status: Option<u16>,
    /// The decider, by name or in words.
    pub rule: String,
    /// Location of that in the topology.
    pub origin: Option<Origin>,
    /// The host whose agent refused it, if that was another.
    pub judged_at: String,
    /// Sending process, if it is known here.
    pub process: Option<Process>,
}

/// The last of them, the newest last.
#[derive(Debug, Default)]
pub(crate) struct Refused(Mutex<VecDeque<RefusedRequest>>);

impl Refused {
    pub(crate) fn note(&self, mut request: RefusedRequest) {
        request.path.truncate(request.path.floor_char_boundary(PATH_BYTES));
        let mut kept = self.0.lock();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(request);
    }

    /// The newest first.
    pub(crate) fn list(&self) -> Vec<RefusedRequest> {
        self.0.lock().iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_are_kept_and_long_paths_are_cut() {
        let refused = Refused::default();
        let request = |path: String| RefusedRequest {
            at: SystemTime::UNIX_EPOCH,
            request_id: String::new(),
            side: Side::Client,
            from: String::new(),
            to: String::new(),
            source: SocketAddr::from(([127, 0, 0, 1], 1)),
            method: Method::GET,
            path,
            status: Some(403),
            rule: String::new(),
            origin: None,
            judged_at: String::new(),
            process: None,
        };
        for number in 0..=KEPT {
            refused.note(request(format!("/{number}")));
        }
        let list = refused.list();
        assert_eq!((list.len(), &*list[0].path, &*list[KEPT - 1].path), (KEPT, "/256", "/1"));
        refused.note(request(format!("/{}", "ü".repeat(PATH_BYTES))));
        assert_eq!(refused.list()[0].path.len(), PATH_BYTES - 1, "at a character's end");
    }
}
