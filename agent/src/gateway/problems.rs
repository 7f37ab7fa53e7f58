//! Problems of gateways, each with its remedy.

use std::sync::Arc;

use isthmus_model::{Code, Problem, ServiceId, Snapshot};
use isthmus_proxy::HostServices as _;

use super::listeners::GatewayListeners;
use super::{ASK_AGAIN, AgentServices, SPECIAL, externals};
use crate::status::Shared;

impl AgentServices {
    /// Certificates that can't be used or had, and ports that can't be opened.
    pub(super) fn problems(&self, open: &GatewayListeners) -> (Vec<Problem>, Vec<Problem>) {
        let (mut unusable, mut closed) = (Vec::new(), Vec::new());
        let known = self.known.read();
        let Some(snapshot) = &known.snapshot else { return (unusable, closed) };
        let certificate = |whose: String, (text, remedy): &(String, String)| {
            let text = format!("{whose}: {text}");
            Problem::new(Code::CertificateUnusable, text, remedy).about(whose)
        };
        for (id, service, _) in snapshot.local_services() {
            let listeners = service.gateway().map_or(&[][..], |gateway| &gateway.listeners);
            for (index, listener) in listeners.iter().enumerate() {
                let whose = format!("gateway {} port {}", service.name, listener.port);
                let loaded = known.servers.get(&(id, listener.port, index));
                if let Some(problem) = loaded.and_then(|it| it.problem.as_ref()) {
                    unusable.push(certificate(whose.clone(), problem));
                }
                let served = self.served(listener);
                let order = served.and_then(|it| known.orders.get(&it.certificate.certificate));
                // One that is under way is no problem.
                if let Some(order) = order.filter(|it| it.contains("gave no certificate")) {
                    let remedy = "let the authority reach this host at the port that it asks, by the names \
                                  of `hosts`; it is ordered again by itself";
                    let problem = (order.clone(), remedy.to_owned());
                    unusable.push(certificate(whose.clone(), &problem));
                }
                if let Some(found) = open.problem(listener.port) {
                    let text = format!("gateway {}: {}", service.name, found.why);
                    let problem = Problem::new(Code::GatewayDoor, text, &*found.remedy);
                    closed.push(problem.about(whose));
                }
            }
        }
        for (id, _) in externals(snapshot) {
            let loaded = known.clients.get(&id).and_then(|it| it.problem.as_ref());
            if let Some((problem, service)) = loaded.zip(snapshot.services.get(&id)) {
                unusable.push(certificate(format!("external {}", service.name), problem));
            }
        }
        (unusable, closed)
    }

    pub(super) fn unresolved(
        &self,
        snapshot: &Snapshot,
        id: ServiceId,
        error: &str,
    ) -> Option<Problem> {
        let service = snapshot.services.get(&id)?;
        let (name, host) = (&service.name, &service.external()?.host);
        let kept = if self.addresses(id).is_empty() {
            "requests to it get 503"
        } else {
            "its former addresses stay in use"
        };
        let text = format!("external {name}: {host} can't be resolved here ({error}); {kept}");
        let remedy = format!(
            "`getent hosts {host}` here must find it: see this host's resolver, or correct `host` of \
             [external.{name}]; it is asked again every {} s",
            ASK_AGAIN.as_secs()
        );
        Some(Problem::new(Code::ExternalUnresolved, text, remedy).about(name.as_str()))
    }

    pub(super) fn refused_addresses(&self, snapshot: &Snapshot) -> Vec<Problem> {
        let known = self.known.read();
        let problem = |(id, reason): (&ServiceId, &String)| {
            let service = snapshot.services.get(id)?;
            service.external_from(snapshot.local)?;
            let name = &service.name;
            let text = format!("external service {name}: {reason}");
            let remedy = format!(
                "find out who answers for the name; if it is meant, write the address as `host` \
                 of [external.{name}], or `special_addresses = true`"
            );
            Some(Problem::new(SPECIAL, text, remedy).about(name.as_str()))
        };
        known.refused.iter().filter_map(problem).collect()
    }
}

/// Nobody knows any more when nobody looks.
pub(super) struct Clear(pub(super) Arc<Shared>);

impl Drop for Clear {
    fn drop(&mut self) {
        let codes =
            [Code::CertificateUnusable, Code::GatewayDoor, Code::ExternalUnresolved, SPECIAL];
        codes.into_iter().for_each(|code| self.0.problems.set(code, None));
    }
}
