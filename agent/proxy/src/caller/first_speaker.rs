//! First-speaker hints for services that are `auto`, learnt from earlier connections.

use std::collections::HashMap;

use isthmus_model::ServiceId;
use parking_lot::Mutex;

/// The side that spoke first on a service's last connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    Client,
    Server,
}

/// By service. It is a hint: what is wrong costs a moment.
#[derive(Debug, Default)]
pub(crate) struct FirstSpeakerHints(Mutex<HashMap<ServiceId, First>>);

impl FirstSpeakerHints {
    pub(crate) fn of(&self, service: ServiceId) -> Option<First> {
        self.0.lock().get(&service).copied()
    }

    pub(crate) fn learn(&self, service: ServiceId, first: First) {
        self.0.lock().insert(service, first);
    }
}
