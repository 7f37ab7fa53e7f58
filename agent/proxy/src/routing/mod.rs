//! Which route a request takes, and what the route makes of it. No clock, no chance, no IO: what is
//! random comes in as an argument.
//!
//! Precedence is Gateway API's. The most specific host decides first: an exact name, then the longest
//! `*.suffix`, then none. Then the path: an exact one, then an expression (the longest first), then
//! the longest prefix. Then whether a method is asked for, then the number of header fields, then of
//! parameters; and between equals the order in which the routes stand.

mod compile;
mod matching;
mod rewrite;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use isthmus_model::{Name, ServiceId, Snapshot};

pub(crate) use compile::{Act, Compiled};
pub(crate) use matching::Asked;
pub(crate) use rewrite::{location, target};
pub(crate) use table::{Chosen, Table};

/// All routes of a revision, compiled.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    tables: HashMap<ServiceId, Table>,
}

impl Routes {
    pub(crate) fn new(snapshot: &Snapshot) -> Self {
        let ids: HashMap<&Name, ServiceId> =
            snapshot.services.iter().map(|(id, service)| (&service.name, *id)).collect();
        let mut tables: HashMap<ServiceId, Table> = HashMap::new();
        for route in &snapshot.routes {
            let Some(asked) = ids.get(&route.service) else { continue };
            let compiled = Arc::new(Compiled::new(route, &ids));
            tables.entry(*asked).or_default().add(compiled, &route.matches);
        }
        tables.values_mut().for_each(Table::finish);
        Self { tables }
    }

    /// The routes of a service, if it has any.
    pub(crate) fn of(&self, service: ServiceId) -> Option<&Table> {
        self.tables.get(&service)
    }
}
