//! What earlier connections taught about a service that is `auto`: who speaks first.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use isthmus_model::ServiceId;

/// Who spoke first on a service's last connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    Client,
    Server,
}

/// By service. It is a hint: what is wrong costs a moment.
#[derive(Debug, Default)]
pub(crate) struct Lessons(Mutex<HashMap<ServiceId, First>>);

impl Lessons {
    pub(crate) fn of(&self, service: ServiceId) -> Option<First> {
        self.lock().get(&service).copied()
    }

    pub(crate) fn learn(&self, service: ServiceId, first: First) {
        self.lock().insert(service, first);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServiceId, First>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
