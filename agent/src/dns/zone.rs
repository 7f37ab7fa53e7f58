//! The mesh's names as a DNS zone. Pure: a view and a query's bytes in, an answer's bytes out.
//!
//! ```text
//! web.prod.mesh.internal         the virtual addresses of service web in namespace prod, also by an alias of it
//! web.prod                       the same, where short names are answered
//! app-1.host.mesh.internal       the addresses of host app-1
//! press.device.mesh.internal     the addresses of device press
//! 7.0.64.100.in-addr.arpa        the name of whatever 100.64.0.7 stands for; same for IPv6
//! ```
//!
//! What lies in `mesh.internal`, or in the reverse trees of the mesh's prefixes, is answered here and
//! nowhere else, also when it doesn't exist: a question about the mesh never leaves it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name as DomainName, RData, Record, RecordType};
use isthmus_model::{HostId, Place, ServiceId, Snapshot};
use isthmus_proxy::ProxySnapshot;

use super::wire;

/// TTL of an answer, in seconds.
pub const TTL: u32 = 5;
/// Answer size that fits into one packet on any path (DNS flag day 2020).
const MAX_UDP_PAYLOAD: u16 = 1232;
/// Maximum answer size without EDNS (RFC 1035, section 4.2.1).
const PLAIN_UDP_PAYLOAD: u16 = 512;
const HEADER_BYTES: usize = 12;

/// Transport of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram; the answer must fit into one.
    Udp,
    /// Over a stream.
    Tcp,
}

/// Reply to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Send these bytes.
    Answer(Vec<u8>),
    /// It isn't about the mesh: somebody else has to answer.
    Forward {
        /// As many bytes of an answer as its sender takes.
        max_bytes: usize,
    },
    /// It is no query at all. To answer garbage is to be used against others.
    Ignore,
}

/// Answers a query, if it is about the mesh. `short`: whether names may leave `mesh.internal` out.
#[must_use]
pub fn answer(view: &ProxySnapshot, short: bool, query: &[u8], transport: Transport) -> Reply {
    if query.len() < HEADER_BYTES || query[2] & 0x80 != 0 {
        return Reply::Ignore;
    }
    let Ok(message) = Message::from_vec(query) else {
        return Reply::Answer(wire::bare_reply(query, ResponseCode::FormErr.low()));
    };
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&message.queries);
    if message.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_PAYLOAD);
        reply.set_edns(edns);
    }
    let max_bytes = max_bytes(&message, transport);
    match judge(view, short, &message) {
        Ok(None) => return Reply::Forward { max_bytes },
        Ok(Some(found)) => fill(&mut reply, found, &view.snapshot),
        Err(code) => reply.metadata.response_code = code,
    }
    encode(&reply, query, max_bytes)
}

/// A reply that says that nobody could answer.
#[must_use]
pub fn failure(query: &[u8]) -> Vec<u8> {
    wire::bare_reply(query, ResponseCode::ServFail.low())
}

/// Maximum answer size that the query's sender accepts.
fn max_bytes(query: &Message, transport: Transport) -> usize {
    let max = match (transport, &query.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => PLAIN_UDP_PAYLOAD,
        (Transport::Udp, Some(edns)) => {
            edns.max_payload().clamp(PLAIN_UDP_PAYLOAD, MAX_UDP_PAYLOAD)
        }
    };
    usize::from(max)
}

/// Records of a name in the zone.
struct Found {
    /// The zone that the name lies in, or would.
    zone: DomainName,
    owner: DomainName,
    what: What,
}

enum What {
    /// The name doesn't exist.
    Nothing,
    /// It exists, but not with the type that was asked for.
    NoData,
    Data(RData),
    /// The zone's own name, asked for its SOA.
    Start,
}

/// Looks up a query's name; none if it isn't the mesh's to answer.
fn judge(
    view: &ProxySnapshot,
    short: bool,
    message: &Message,
) -> Result<Option<Found>, ResponseCode> {
    if message.metadata.message_type != MessageType::Query {
        return Err(ResponseCode::FormErr);
    }
    if message.metadata.op_code != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Err(ResponseCode::BADVERS);
    }
    let [query] = message.queries.as_slice() else {
        return Err(ResponseCode::FormErr);
    };
    if query.query_class() != DNSClass::IN || is_refused(query.query_type()) {
        return Err(ResponseCode::Refused);
    }
    Ok(locate(view, short, query))
}

/// `ANY` serves nobody but attackers (RFC 8482); zones aren't given away.
fn is_refused(kind: RecordType) -> bool {
    matches!(kind, RecordType::ANY | RecordType::AXFR | RecordType::IXFR)
}

fn locate(view: &ProxySnapshot, short: bool, query: &Query) -> Option<Found> {
    let labels: Vec<Vec<u8>> = query.name().iter().map(<[u8]>::to_ascii_lowercase).collect();
    let labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
    let (zone_labels, what) = match labels.as_slice() {
        [within @ .., b"mesh", b"internal"] => (2, forward(&view.snapshot, within, query)),
        [within @ .., b"in-addr", b"arpa"] => reverse_v4(view, within, query)?,
        [within @ .., b"ip6", b"arpa"] => reverse_v6(view, within, query)?,
        // Only what is there: everything else may be a name of the world's.
        within @ [name, group] if short && addresses(&view.snapshot, name, group).is_some() => {
            (2, forward(&view.snapshot, within, query))
        }
        _ => return None,
    };
    let zone = query.name().trim_to(zone_labels);
    Some(Found { zone, owner: query.name().clone(), what })
}

fn forward(snapshot: &Snapshot, within: &[&[u8]], query: &Query) -> What {
    let addresses = match within {
        [] => return apex(query),
        [group] if group_exists(snapshot, group) => return What::NoData,
        [name, group] => addresses(snapshot, name, group),
        _ => None,
    };
    match (addresses, query.query_type()) {
        (None, _) => What::Nothing,
        (Some((ipv4, _)), RecordType::A) => What::Data(RData::A(A(ipv4))),
        (Some((_, ipv6)), RecordType::AAAA) => What::Data(RData::AAAA(AAAA(ipv6))),
        (Some(_), _) => What::NoData,
    }
}

fn apex(query: &Query) -> What {
    if query.query_type() == RecordType::SOA { What::Start } else { What::NoData }
}

/// Whether there may be names under `group`.
fn group_exists(snapshot: &Snapshot, group: &[u8]) -> bool {
    matches!(group, b"host" | b"device")
        || snapshot.services.values().any(|s| s.namespace.as_str().as_bytes() == group)
}

/// A service before a host: a namespace may be called `host`.
fn addresses(snapshot: &Snapshot, name: &[u8], group: &[u8]) -> Option<(Ipv4Addr, Ipv6Addr)> {
    let is = |candidate: &isthmus_model::Name| candidate.as_str().as_bytes() == name;
    let service = snapshot
        .services
        .iter()
        .find(|(_, s)| is(&s.name) && s.namespace.as_str().as_bytes() == group)
        .or_else(|| {
            let mut services = snapshot.services.iter();
            services
                .find(|(_, s)| s.aliases.iter().any(is) && s.namespace.as_str().as_bytes() == group)
        });
    if let Some((id, service)) = service {
        return Some((service.virtual_ipv4, snapshot.virtual_ipv6(*id)));
    }
    match group {
        b"host" => {
            let (id, host) = snapshot.hosts.iter().find(|(_, host)| is(&host.name))?;
            Some((host.ipv4(), snapshot.workload_ipv6(*id, ServiceId(0))))
        }
        b"device" => {
            let (id, device) = snapshot.devices.iter().find(|(_, device)| is(&device.name))?;
            Some((device.ipv4, snapshot.workload_ipv6(device.via, ServiceId(id.0))))
        }
        _ => None,
    }
}

/// None if the name isn't about the mesh's IPv4 addresses; else how many labels its zone has. Below
/// the mesh's own labels nothing but numbers exists.
fn reverse_v4(view: &ProxySnapshot, within: &[&[u8]], query: &Query) -> Option<(usize, What)> {
    let mesh = view.snapshot.mesh.ipv4;
    let mut octets = [0_u8; 4];
    // The last label is the first octet.
    let given: Vec<u8> = within.iter().rev().take(4).map_while(|label| decimal(label)).collect();
    octets[..given.len()].copy_from_slice(&given);
    let given_bits = u8::try_from(given.len() * 8).ok()?;
    if given_bits < mesh.prefix_len() || !mesh.contains(&Ipv4Addr::from(octets)) {
        return None;
    }
    let zone = 2 + usize::from(mesh.prefix_len() / 8);
    if given.len() < within.len().min(4) {
        return Some((zone, What::Nothing));
    }
    let address = IpAddr::V4(octets.into());
    Some((zone, reverse(view, address, within.len(), 4, query)))
}

fn reverse_v6(view: &ProxySnapshot, within: &[&[u8]], query: &Query) -> Option<(usize, What)> {
    let mesh = view.snapshot.mesh.prefix.bytes();
    let mut octets = [0_u8; 16];
    let given: Vec<u8> = within.iter().rev().take(32).map_while(|label| nibble(label)).collect();
    for (position, nibble) in given.iter().enumerate() {
        octets[position / 2] |= if position % 2 == 0 { nibble << 4 } else { *nibble };
    }
    if given.len() < 2 * mesh.len() || octets[..mesh.len()] != mesh {
        return None;
    }
    let zone = 2 + 2 * mesh.len();
    if given.len() < within.len().min(32) {
        return Some((zone, What::Nothing));
    }
    let address = IpAddr::V6(octets.into());
    Some((zone, reverse(view, address, within.len(), 32, query)))
}

/// The name for an address, of which `given` labels of `needed` were given.
fn reverse(
    view: &ProxySnapshot,
    address: IpAddr,
    given: usize,
    needed: usize,
    query: &Query,
) -> What {
    if given < needed {
        return What::NoData;
    }
    let name = view.directory.place(address).and_then(|place| domain_name(&view.snapshot, place));
    match name.filter(|_| given == needed) {
        Some(name) if query.query_type() == RecordType::PTR => What::Data(RData::PTR(PTR(name))),
        Some(_) => What::NoData,
        None => What::Nothing,
    }
}

/// A number with one way to write it: no sign, no zeros before it.
fn decimal(label: &[u8]) -> Option<u8> {
    let number: u8 = std::str::from_utf8(label).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == label).then_some(number)
}

fn nibble(label: &[u8]) -> Option<u8> {
    match label {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        [digit @ b'a'..=b'f'] => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// The name of a place, as [`forward`] reads it.
fn domain_name(snapshot: &Snapshot, place: Place) -> Option<DomainName> {
    let host = |id: HostId| snapshot.hosts.get(&id).map(|host| (host.name.as_str(), "host"));
    let (name, group) = match place {
        Place::Host(id) => host(id)?,
        Place::Anycast => host(snapshot.local)?,
        Place::Workload(_, id) | Place::Virtual(id) => {
            let service = snapshot.services.get(&id)?;
            (service.name.as_str(), service.namespace.as_str())
        }
        Place::Device(_, id) => (snapshot.devices.get(&id)?.name.as_str(), "device"),
    };
    DomainName::from_labels([name, group, "mesh", "internal"]).ok()
}

fn fill(reply: &mut Message, found: Found, snapshot: &Snapshot) {
    reply.metadata.authoritative = true;
    let start = |zone: DomainName| -> Record { start_of_authority(zone, snapshot) };
    match found.what {
        What::Data(data) => {
            reply.add_answer(Record::from_rdata(found.owner, TTL, data));
        }
        What::Start => {
            reply.add_answer(start(found.zone));
        }
        What::NoData => {
            reply.add_authority(start(found.zone));
        }
        What::Nothing => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.add_authority(start(found.zone));
        }
    }
}

/// Goes with every "no": it says how long to believe that (RFC 2308).
fn start_of_authority(zone: DomainName, snapshot: &Snapshot) -> Record {
    let name = |first: &str| {
        DomainName::from_labels([first, "mesh", "internal"]).unwrap_or_else(|_| DomainName::root())
    };
    // Serials wrap; nobody transfers this zone.
    let serial = u32::try_from(snapshot.revision.0 & u64::from(u32::MAX)).unwrap_or(0);
    let ttl = TTL.cast_signed();
    let soa = SOA::new(name("ns"), name("hostmaster"), serial, ttl, ttl, ttl, TTL);
    Record::from_rdata(zone, TTL, RData::SOA(soa))
}

fn encode(reply: &Message, query: &[u8], max_bytes: usize) -> Reply {
    let Ok(bytes) = reply.to_vec() else {
        return Reply::Answer(failure(query));
    };
    if bytes.len() <= max_bytes {
        Reply::Answer(bytes)
    } else {
        Reply::Answer(wire::truncated(bytes))
    }
}
