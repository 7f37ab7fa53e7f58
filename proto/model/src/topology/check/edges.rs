//! Checks between gateways: no two of them want a port of one host.

use std::collections::HashMap;

use super::names::named;
use crate::edge::Edge;
use crate::name::Name;
use crate::topology::decl::Placement;
use crate::topology::draft::Draft;
use crate::topology::read::{At, Report};
use crate::topology::tables::service::ServiceDraft;

pub(super) fn check(draft: &Draft, report: &mut Report<'_>) {
    let mut gateways: Vec<(&Name, At, &ServiceDraft)> =
        named(&draft.services).map(|(name, service)| (name, service.at, service)).collect();
    gateways.sort_by_key(|(_, at, _)| *at);
    let mut taken: HashMap<(String, u16), &Name> = HashMap::new();
    for (name, at, gateway) in gateways {
        let Some(Edge::Gateway(edge)) = &gateway.decl.edge else { continue };
        // Hosts with labels bring some of them only when they join: these are compared as they stand.
        let places: Vec<String> = match &gateway.decl.hosts {
            Placement::Names(hosts) => {
                hosts.iter().map(|host| format!("host \"{host}\"")).collect()
            }
            Placement::Labels(labels) => vec![format!("hosts with {labels:?}")],
        };
        let ports = edge.listeners.iter().map(|listener| listener.port);
        let wanted = ports.flat_map(|port| places.iter().map(move |place| (place, port)));
        let clash = wanted.fold(None, |clash, (place, port)| {
            let other = *taken.entry((place.clone(), port)).or_insert(name);
            clash.or_else(|| (other != name).then_some((other, place, port)))
        });
        if let Some((other, place, port)) = clash {
            let message = format!(
                "gateways \"{other}\" and \"{name}\" both listen on port {port} of {place}"
            );
            let help = "make them one gateway whose listeners name `hosts`, or use another port";
            report.error(at, message, help);
        }
    }
}
