//! The fate of a packet that belongs to no flow yet: whose it is, where it goes, what policy says.

use isthmus_model::{HostId, Layer4, Place, ServiceId};
use isthmus_packet::{FlowKey, Headers, Reason, Transport};
use isthmus_policy::Outcome;

use super::Judge;
use super::adopt::Adoption;
use crate::flows::{End, NewFlow};
use crate::snapshot::{CompiledSnapshot, Owner, Owners, balance};
use crate::types::{DropReason, Interface, PeerName};

/// Decision about a packet that belongs to no flow.
pub(crate) enum Decision {
    /// Make a flow of it, a denied one perhaps. The packet belongs to this leg.
    New(NewFlow, u8),
    Refuse(Refusal),
}

/// Why there is no flow, and what the sender is told about it.
pub(crate) struct Refusal {
    pub(crate) drop: DropReason,
    pub(crate) answer: Option<Reason>,
}

impl Refusal {
    pub(crate) const fn silent(drop: DropReason) -> Self {
        Self { drop, answer: None }
    }

    const fn unreachable(drop: DropReason) -> Self {
        Self { drop, answer: Some(Reason::HostUnreachable) }
    }

    const fn prohibited(drop: DropReason) -> Self {
        Self { drop, answer: Some(Reason::Prohibited) }
    }
}

/// Position of a packet in its flow.
enum Standing {
    /// It opens a flow, or can't be told from one that does.
    First,
    /// It is in the middle of a TCP connection; who opened it isn't known.
    Middle,
    /// It answers something.
    Answer,
}

impl Judge {
    pub(crate) fn decide(
        &self,
        ingress: Interface,
        headers: &Headers,
        owners: &mut dyn Owners,
    ) -> Decision {
        let Some((standing, layer4)) = standing(headers) else {
            return Decision::Refuse(Refusal::silent(DropReason::Icmp));
        };
        if let Err(reason) = self.check_source(ingress, headers)
            && !self.may_be_behind(ingress, headers)
        {
            return Decision::Refuse(Refusal::silent(reason));
        }
        match (standing, ingress) {
            (Standing::First, _) => self.decide_first(ingress, headers, layer4, owners),
            (Standing::Middle, Interface::Tun) => {
                self.decide_middle(ingress, headers, layer4, owners)
            }
            (Standing::Middle, Interface::Peer(_)) => {
                self.decide_middle_from_peer(ingress, headers, layer4, owners)
            }
            (Standing::Answer, _) => match self.adopt(ingress, headers, owners) {
                Adoption::Flow(new) => Decision::New(*new, 1),
                Adoption::Unresolved | Adoption::Denied => {
                    Decision::Refuse(Refusal::silent(DropReason::UnknownFlow))
                }
            },
        }
    }

    /// Whether the source may come in by this port at all. INVARIANT: nothing else lets a packet in;
    /// flows are found by their port, and made only after this.
    pub(crate) fn check_source(
        &self,
        ingress: Interface,
        headers: &Headers,
    ) -> Result<(), DropReason> {
        let place = self.state.place(headers.key.source);
        match ingress {
            Interface::Tun if self.is_local(place) => Ok(()),
            Interface::Tun => Err(DropReason::ForeignSource),
            Interface::Peer(peer) if owns(&self.state, peer, place) => Ok(()),
            Interface::Peer(_) => Err(DropReason::Forged),
        }
    }

    /// Whether somebody behind this host, who has no address of the mesh, may have sent this: a
    /// container. INVARIANT: it gets no further than [`Judge::origin`], which asks who that is.
    fn may_be_behind(&self, ingress: Interface, headers: &Headers) -> bool {
        ingress == Interface::Tun && self.state.place(headers.key.source).is_none()
    }

    fn is_local(&self, place: Option<Place>) -> bool {
        match place {
            Some(Place::Host(host) | Place::Workload(host, _)) => host == self.state.local(),
            Some(Place::Device(..) | Place::Virtual(_) | Place::Anycast) | None => false,
        }
    }

    fn decide_first(
        &self,
        ingress: Interface,
        headers: &Headers,
        layer4: Layer4,
        owners: &mut dyn Owners,
    ) -> Decision {
        let plan = self
            .origin(ingress, headers, owners, Unknown::Refuse)
            .and_then(|from| self.plan(ingress, from, headers.key, layer4));
        match plan {
            Ok(new) => Decision::New(new, 0),
            Err(refusal) => Decision::Refuse(refusal),
        }
    }

    /// From the TUN device: the sender is the originator, or answers one far away.
    fn decide_middle(
        &self,
        ingress: Interface,
        headers: &Headers,
        layer4: Layer4,
        owners: &mut dyn Owners,
    ) -> Decision {
        let plan = self
            .origin(ingress, headers, owners, Unknown::Accept)
            .and_then(|from| self.plan(ingress, from, headers.key, layer4));
        if let Ok(new) = &plan
            && !new.verdict.denies()
        {
            return Decision::New(*new, 0);
        }
        match (self.adopt(ingress, headers, owners), plan) {
            (Adoption::Flow(new), _) => Decision::New(*new, 1),
            (Adoption::Unresolved, _) => Decision::Refuse(Refusal::silent(DropReason::UnknownFlow)),
            (Adoption::Denied, Ok(new)) => Decision::New(new, 0),
            (Adoption::Denied, Err(refusal)) => Decision::Refuse(refusal),
        }
    }

    /// By a tunnel: a local socket that has asked comes first, since only it tells how the flow was
    /// translated here.
    fn decide_middle_from_peer(
        &self,
        ingress: Interface,
        headers: &Headers,
        layer4: Layer4,
        owners: &mut dyn Owners,
    ) -> Decision {
        let adoption = self.adopt(ingress, headers, owners);
        if let Adoption::Flow(new) = adoption {
            return Decision::New(*new, 1);
        }
        let plan = self
            .origin(ingress, headers, owners, Unknown::Accept)
            .and_then(|from| self.plan(ingress, from, headers.key, layer4));
        match (plan, adoption) {
            (Ok(new), Adoption::Unresolved) if new.verdict.denies() => {
                Decision::Refuse(Refusal::silent(DropReason::UnknownFlow))
            }
            (Ok(new), _) => Decision::New(new, 0),
            (Err(refusal), _) => Decision::Refuse(refusal),
        }
    }

    /// Sender of a packet, as the mesh is to see it.
    fn origin(
        &self,
        ingress: Interface,
        headers: &Headers,
        owners: &mut dyn Owners,
        unknown: Unknown,
    ) -> Result<End, Refusal> {
        let address = headers.key.source;
        let Some(place) = self.state.place(address) else {
            return self.origin_behind(ingress, headers, owners);
        };
        if matches!(ingress, Interface::Peer(_)) {
            return Ok(End { place, address });
        }
        let owner = owners.owner(&headers.key, &self.state);
        match (place, owner) {
            (Place::Workload(_, service), Owner::Service(owner)) if service == owner => {
                Ok(End { place, address })
            }
            // A connection whose program has let go of it; it was checked when it was opened.
            (Place::Workload(..), Owner::Unknown) if unknown == Unknown::Accept => {
                Ok(End { place, address })
            }
            (Place::Workload(..), Owner::Service(_) | Owner::Host | Owner::Unknown) => {
                Err(Refusal::silent(DropReason::NotOwner))
            }
            (Place::Host(host), Owner::Service(service)) => {
                Ok(self.workload(host, service, address.is_v4()).unwrap_or(End { place, address }))
            }
            (Place::Host(_), Owner::Host) => Ok(End { place, address }),
            // Nobody's socket: it is gone already, or of a kind that can't be looked up. It may have
            // been any service's, so it doesn't get to be the host.
            (Place::Host(_), Owner::Unknown)
                if unknown == Unknown::Refuse && has_socket(headers) =>
            {
                Err(Refusal::silent(DropReason::NotOwner))
            }
            (Place::Host(_), Owner::Unknown) => Ok(End { place, address }),
            (Place::Device(..) | Place::Virtual(_) | Place::Anycast, _) => {
                Err(Refusal::silent(DropReason::ForeignSource))
            }
        }
    }

    /// Who sends this that has no address of the mesh: somebody whose network is behind this host's, a
    /// container. It gets the address that its service has here, or the host's.
    fn origin_behind(
        &self,
        ingress: Interface,
        headers: &Headers,
        owners: &mut dyn Owners,
    ) -> Result<End, Refusal> {
        let (local, v4) = (self.state.local(), headers.key.source.is_v4());
        if ingress != Interface::Tun {
            return Err(Refusal::silent(DropReason::Forged));
        }
        match owners.behind(headers.key.source.ip(), &self.state) {
            Owner::Service(service) => {
                self.workload(local, service, v4).ok_or(Refusal::silent(DropReason::NotOwner))
            }
            Owner::Host => {
                Ok(End { place: Place::Host(local), address: self.state.own_address(v4) })
            }
            Owner::Unknown => Err(Refusal::silent(DropReason::ForeignSource)),
        }
    }

    pub(crate) fn workload(&self, host: HostId, service: ServiceId, v4: bool) -> Option<End> {
        let address = self.state.workload_address(host, service, v4)?;
        Some(End { place: Place::Workload(host, service), address })
    }

    /// Decides about a flow that `from` opens with packets like `original`.
    pub(crate) fn plan(
        &self,
        ingress: Interface,
        from: End,
        original: FlowKey,
        layer4: Layer4,
    ) -> Result<NewFlow, Refusal> {
        let local = self.state.local();
        let seen = FlowKey { source: from.address, ..original };
        if let Some(new) = self.plan_to_proxy(ingress, from, original, layer4) {
            return Ok(new);
        }
        let to = self.destination(ingress, &seen)?;
        let egress = self.egress(ingress, to.place, &seen)?;
        let verdict =
            self.state.judge(from.place.principal(local), to.place.principal(local), layer4);
        if matches!(to.place, Place::Virtual(_)) && !verdict.denies() {
            return Err(Refusal::unreachable(DropReason::NoBackend));
        }
        if egress == Interface::Tun && self.state.leads_around_proxy(to.place, layer4) {
            return Err(Refusal::prohibited(DropReason::AroundProxy));
        }
        let mut translated = FlowKey { destination: to.address, ..seen };
        if egress == Interface::Tun {
            if ingress == Interface::Tun {
                translated.source = self.hairpin_source(from);
            }
            if verdict.outcome == Outcome::Inspect || self.is_deaf(to, layer4) {
                translated.destination_port = self.proxy_port;
            }
        }
        Ok(NewFlow { from, to, layer4, verdict, ingress, egress, original, translated })
    }

    /// Whether an application here doesn't listen on the family that it is asked by.
    fn is_deaf(&self, to: End, layer4: Layer4) -> bool {
        let Place::Workload(_, service) = to.place else { return false };
        let Layer4::Tcp(port) = layer4 else { return false };
        self.deaf.contains(&(service, port, to.address.is_v4()))
    }

    /// A flow from this host to the virtual address of a service that speaks HTTP goes to the proxy
    /// here, which chooses a backend for each request. It keeps its destination, so that the proxy
    /// knows whom it is for, and shows who opened it as flows that stay on this host do.
    fn plan_to_proxy(
        &self,
        ingress: Interface,
        from: End,
        original: FlowKey,
        layer4: Layer4,
    ) -> Option<NewFlow> {
        let Place::Virtual(service) = self.state.place(original.destination)? else { return None };
        if ingress != Interface::Tun {
            return None;
        }
        let to = End { place: Place::Virtual(service), address: original.destination };
        let local = self.state.local();
        let verdict =
            self.state.judge(from.place.principal(local), to.place.principal(local), layer4);
        let translated = FlowKey {
            source: self.hairpin_source(from),
            destination_port: self.proxy_port,
            ..original
        };
        let egress = Interface::Tun;
        (verdict.outcome == Outcome::Inspect).then_some(NewFlow {
            from,
            to,
            layer4,
            verdict,
            ingress,
            egress,
            original,
            translated,
        })
    }

    /// On flows that stay on this host, the receiver must answer by the TUN device: not to an
    /// address that the kernel knows as its own.
    fn hairpin_source(&self, from: End) -> isthmus_packet::Address {
        let v4 = from.address.is_v4();
        match from.place {
            Place::Workload(_, service) => self.state.virtual_address(service, v4),
            Place::Host(_) | Place::Device(..) | Place::Virtual(_) | Place::Anycast => None,
        }
        .unwrap_or_else(|| self.state.anycast_address(v4))
    }

    /// Who a flow is for: a virtual address stands for one of its backends, or for itself where there
    /// is none, so that policy can say no before anything else does.
    fn destination(&self, ingress: Interface, seen: &FlowKey) -> Result<End, Refusal> {
        let transit = matches!(ingress, Interface::Peer(PeerName::Host(_)));
        match self.state.place(seen.destination) {
            Some(Place::Virtual(_)) if transit => Err(Refusal::silent(DropReason::Transit)),
            Some(place @ Place::Virtual(service)) => {
                Ok(match balance::pick(&self.state, service, seen) {
                    Some((host, address)) => End { place: Place::Workload(host, service), address },
                    None => End { place, address: seen.destination },
                })
            }
            Some(place @ (Place::Host(_) | Place::Workload(..) | Place::Device(..))) => {
                Ok(End { place, address: seen.destination })
            }
            Some(Place::Anycast) | None if transit => Err(Refusal::silent(DropReason::NoRoute)),
            Some(Place::Anycast) | None => Err(Refusal::unreachable(DropReason::NoRoute)),
        }
    }

    /// Which way it is to a place, and whether who comes in here may go there.
    fn egress(&self, ingress: Interface, to: Place, seen: &FlowKey) -> Result<Interface, Refusal> {
        let egress = port_of(&self.state, to);
        let is_virtual = matches!(self.state.place(seen.destination), Some(Place::Virtual(_)));
        match (ingress, egress) {
            (Interface::Tun, Interface::Tun) if !is_virtual => {
                Err(Refusal::silent(DropReason::Local))
            }
            (Interface::Peer(PeerName::Host(_)), Interface::Peer(PeerName::Host(_))) => {
                Err(Refusal::silent(DropReason::Transit))
            }
            (Interface::Peer(one), Interface::Peer(other)) if one == other => {
                Err(Refusal::silent(DropReason::Local))
            }
            (_, Interface::Peer(name)) if !self.state.has_peer(name) => {
                Err(Refusal::unreachable(DropReason::NoRoute))
            }
            (Interface::Tun | Interface::Peer(_), egress) => Ok(egress),
        }
    }
}

/// Decides about a socket without an owner.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Accept,
    Refuse,
}

/// Whether what a packet carries is opened through a socket that any user may have.
fn has_socket(headers: &Headers) -> bool {
    match headers.transport {
        Transport::Tcp { .. } | Transport::Udp | Transport::UdpLite | Transport::Sctp => true,
        Transport::EchoRequest { .. }
        | Transport::EchoReply { .. }
        | Transport::IcmpError { .. }
        | Transport::Icmp { .. }
        | Transport::Other
        | Transport::LaterFragment => false,
    }
}

/// Where packets to a place leave by, and packets from it come in by. Virtual places have none of
/// their own; they are this host's.
pub(crate) fn port_of(state: &CompiledSnapshot, place: Place) -> Interface {
    match place {
        Place::Device(host, device) if host == state.local() => {
            Interface::Peer(PeerName::Device(device))
        }
        Place::Host(host) | Place::Workload(host, _) | Place::Device(host, _) => {
            if host == state.local() {
                Interface::Tun
            } else {
                Interface::Peer(PeerName::Host(host))
            }
        }
        Place::Virtual(_) | Place::Anycast => Interface::Tun,
    }
}

/// Whether a peer may speak from a place: WireGuard's cryptokey routing, with placements.
pub(crate) fn owns(state: &CompiledSnapshot, peer: PeerName, place: Option<Place>) -> bool {
    let Some(place) = place else { return false };
    let is_real = place.host().is_some();
    is_real && port_of(state, place) == Interface::Peer(peer)
}

fn standing(headers: &Headers) -> Option<(Standing, Layer4)> {
    let port = headers.key.destination_port;
    Some(match headers.transport {
        Transport::Tcp { flags } if flags.opens() => (Standing::First, Layer4::Tcp(port)),
        Transport::Tcp { .. } => (Standing::Middle, Layer4::Tcp(port)),
        Transport::Udp => (Standing::First, Layer4::Udp(port)),
        Transport::EchoRequest { .. } => (Standing::First, Layer4::Icmp),
        Transport::EchoReply { .. } => (Standing::Answer, Layer4::Icmp),
        Transport::UdpLite | Transport::Sctp | Transport::Other => {
            (Standing::First, Layer4::Other(headers.key.protocol))
        }
        Transport::IcmpError { .. } | Transport::Icmp { .. } | Transport::LaterFragment => {
            return None;
        }
    })
}

/// Payload of a flow's originator, seen from an answer to it.
pub(crate) fn asked_layer4(headers: &Headers) -> Layer4 {
    match headers.transport {
        Transport::Tcp { .. } => Layer4::Tcp(headers.key.source_port),
        Transport::Udp => Layer4::Udp(headers.key.source_port),
        Transport::EchoRequest { .. }
        | Transport::EchoReply { .. }
        | Transport::IcmpError { .. }
        | Transport::Icmp { .. } => Layer4::Icmp,
        Transport::UdpLite | Transport::Sctp | Transport::Other | Transport::LaterFragment => {
            Layer4::Other(headers.key.protocol)
        }
    }
}
