//! Flows that are older than this process.
//!
//! A packet in the middle of a TCP connection may be an answer, to an originator that opened the
//! flow through an earlier life of this node. To adopt it, the flow must be made from the
//! originator's side, as it was then. That is easy unless the originator is a local socket: it may
//! have used its host's address or its workload's, and the backend's address or the virtual one. The
//! kernel knows: the one combination for which there is a connected socket is it. Were the packet
//! just let through, the kernel would find no socket and reset a healthy connection.

use isthmus_model::Place;
use isthmus_packet::{Address, FlowKey, Headers};

use super::Judge;
use super::decide::{asked_layer4, port_of};
use crate::flows::{End, NewFlow};
use crate::snapshot::{Owner, Owners};
use crate::types::{Interface, PeerName};

/// Classification of an answer without a flow.
pub(crate) enum Adoption {
    /// An answer to this flow; the packet belongs to its leg 1.
    Flow(Box<NewFlow>),
    /// An answer that would be allowed, but to what can't be told. The originator's next packet will.
    Unresolved,
    /// Nobody was allowed to ask for it.
    Denied,
}

impl Judge {
    pub(crate) fn adopt(
        &self,
        ingress: Interface,
        headers: &Headers,
        owners: &mut dyn Owners,
    ) -> Adoption {
        let answer = headers.key;
        let places = (self.state.place(answer.source), self.state.place(answer.destination));
        let (Some(source), Some(destination)) = places else { return Adoption::Denied };
        let local = self.state.local();
        let layer4 = asked_layer4(headers);
        if destination.host().is_none() && !self.can_be_hairpin(ingress, source, destination) {
            return Adoption::Denied;
        }
        if self.state.judge(destination.principal(local), source.principal(local), layer4).denies()
        {
            return Adoption::Denied;
        }
        if destination.host().is_none() {
            return Adoption::Unresolved;
        }
        let from = End { place: destination, address: answer.destination };
        let candidates = match port_of(&self.state, destination) {
            Interface::Tun if ingress == Interface::Tun => return Adoption::Unresolved,
            Interface::Tun => self.asked_by_socket(from, source, &answer, owners),
            // A device may have used the virtual address: only it knows.
            Interface::Peer(PeerName::Device(_)) if matches!(source, Place::Workload(..)) => None,
            Interface::Peer(_) => Some(answer.reversed()),
        };
        let port = port_of(&self.state, destination);
        candidates
            .and_then(|asked| self.plan(port, from, asked, layer4).ok())
            .filter(|new| new.egress == ingress && new.translated.reversed() == answer)
            .map_or(Adoption::Unresolved, |new| Adoption::Flow(Box::new(new)))
    }

    /// Whether an answer to a virtual address can be the other side of a flow that stays on this
    /// host: from a workload here, to one here.
    fn can_be_hairpin(&self, ingress: Interface, source: Place, destination: Place) -> bool {
        let local = self.state.local();
        let has_workload = |service| self.workload(local, service, true).is_some();
        let asked_here = match destination {
            Place::Virtual(service) => has_workload(service),
            Place::Anycast => true,
            Place::Host(_) | Place::Workload(..) | Place::Device(..) => false,
        };
        ingress == Interface::Tun && asked_here && matches!(source, Place::Workload(..))
    }

    /// The question a local socket must have sent to get this answer.
    fn asked_by_socket(
        &self,
        from: End,
        source: Place,
        answer: &FlowKey,
        owners: &mut dyn Owners,
    ) -> Option<FlowKey> {
        let v4 = answer.source.is_v4();
        let virtual_source = match source {
            Place::Workload(_, service) => self.state.virtual_address(service, v4),
            Place::Host(_) | Place::Device(..) | Place::Virtual(_) | Place::Anycast => None,
        };
        let own = self.state.own_address(v4);
        let locals = [Some(answer.destination), (own != answer.destination).then_some(own)];
        let remotes = [virtual_source, Some(answer.source)];
        for remote in remotes.into_iter().flatten() {
            for local in locals.into_iter().flatten() {
                let asked = FlowKey { source: local, destination: remote, ..answer.reversed() };
                if self.has_socket(from, &asked, owners) {
                    return Some(asked);
                }
            }
        }
        None
    }

    fn has_socket(&self, from: End, asked: &FlowKey, owners: &mut dyn Owners) -> bool {
        let owner = owners.owner(asked, &self.state);
        match from.place {
            Place::Workload(_, service) => owner == Owner::Service(service),
            Place::Host(_) | Place::Device(..) | Place::Virtual(_) | Place::Anycast => {
                let speaks_as_host = |address: Address| from.address == address;
                owner != Owner::Unknown && speaks_as_host(asked.source)
            }
        }
    }
}
