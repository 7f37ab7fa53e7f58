//! Route matching, and the changes that a route makes to a request. No clock, no chance, no IO: what is
//! random comes in as an argument.
//!
//! Precedence is Gateway API's. The most specific host decides first: an exact name, then the longest
//! `*.suffix`, then none. Then the path: an exact one, then an expression (the longest first), then
//! the longest prefix. Then whether a method is asked for, then the number of header fields, then of
//! parameters; and between equals the order in which the routes stand.

mod compile;
mod entries;
mod matching;
mod names;
mod rewrite;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use isthmus_model::route::RouteMatch;
use isthmus_model::{Name, ServiceId, Snapshot};

use crate::config::view::Map;

pub(crate) use compile::{Act, Compiled};
pub(crate) use matching::Asked;
pub(crate) use names::Names;
pub(crate) use rewrite::{location, target};
pub(crate) use table::{Chosen, Table};

/// All routes of a revision, compiled.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    tables: Map<ServiceId, Table>,
    /// Of services that may carry TLS.
    names: Map<ServiceId, Names>,
}

impl Routes {
    pub(crate) fn new(snapshot: &Snapshot) -> Self {
        let ids: HashMap<&Name, ServiceId> =
            snapshot.services.iter().map(|(id, service)| (&service.name, *id)).collect();
        let mut tables: Map<ServiceId, Table> = Map::default();
        let mut names: Map<ServiceId, Names> = Map::default();
        for route in &snapshot.routes {
            let Some(asked) = ids.get(&route.service) else { continue };
            let compiled = Arc::new(Compiled::new(route, &ids));
            if snapshot.services.get(asked).is_some_and(|it| it.protocol.carries_tls()) {
                names.entry(*asked).or_default().add(&compiled, &route.matches);
            }
            let is_of_requests = |entry: &RouteMatch| entry.sni.is_empty();
            if route.matches.is_empty() || route.matches.iter().any(is_of_requests) {
                tables.entry(*asked).or_default().add(&compiled, &route.matches);
            }
        }
        tables.values_mut().for_each(Table::finish);
        Self { tables, names }
    }

    /// The routes of a service by server name, if it has any.
    pub(crate) fn by_name(&self, service: ServiceId) -> Option<&Names> {
        self.names.get(&service).filter(|names| !names.is_empty())
    }

    /// The routes of a service, if it has any.
    pub(crate) fn of(&self, service: ServiceId) -> Option<&Table> {
        self.tables.get(&service)
    }
}
