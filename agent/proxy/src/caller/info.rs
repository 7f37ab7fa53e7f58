//! Caller information, computed once per connection and view instead of per request.

use std::sync::Arc;

use http::HeaderValue;
use isthmus_model::Name;
use parking_lot::Mutex;

use super::connection::Connection;
use crate::config::view::ProxySnapshot;

/// Caller information of a connection, by one snapshot.
#[derive(Debug)]
pub(crate) struct CallerInfo {
    view: Arc<ProxySnapshot>,
    /// Whether the two ends are who they were when the connection came.
    pub(crate) holds: bool,
    /// Caller, as shown to applications.
    pub(crate) identity: HeaderValue,
    /// The host that the caller is on, if it is on one.
    pub(crate) source_host: Option<Name>,
}

/// The newest standing that was asked for.
#[derive(Debug, Default)]
pub(crate) struct CallerInfoCache(Mutex<Option<Arc<CallerInfo>>>);

impl CallerInfo {
    fn new(connection: &Connection, view: &Arc<ProxySnapshot>) -> Self {
        let spiffe = connection.parties.from.spiffe(&view.snapshot.mesh.trust_domain);
        Self {
            holds: connection.parties_in(view).is_some(),
            // A SPIFFE ID consists of letters that a header may hold.
            identity: HeaderValue::try_from(spiffe)
                .unwrap_or_else(|_| HeaderValue::from_static("")),
            source_host: view.host_of(connection.peer).cloned(),
            view: Arc::clone(view),
        }
    }
}

impl CallerInfoCache {
    pub(crate) fn of(&self, connection: &Connection, view: &Arc<ProxySnapshot>) -> Arc<CallerInfo> {
        let mut newest = self.0.lock();
        if let Some(known) = newest.as_ref().filter(|known| Arc::ptr_eq(&known.view, view)) {
            return Arc::clone(known);
        }
        Arc::clone(newest.insert(Arc::new(CallerInfo::new(connection, view))))
    }

    /// Lets go of a view that may be old.
    pub(crate) fn forget(&self) {
        *self.0.lock() = None;
    }
}
