//! Consistency checks of a decoded snapshot.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use super::ConvertError;
use crate::address::Ipv4Net;
use crate::identity::{DeviceId, HostId, ServiceId};
use crate::key::PublicKey;
use crate::name::Name;
use crate::snapshot::{Device, Host, Service, Snapshot};

/// Checks the invariants of a snapshot.
pub(super) fn invariants(snapshot: &Snapshot) -> Result<(), ConvertError> {
    let mut check = Check { snapshot, taken: HashMap::new(), keys: HashMap::new() };
    check.mesh()?;
    let mut names = Names::default();
    for (id, host) in &snapshot.hosts {
        let key = format!("host/{}", id.0);
        names.claim(&key, "host", &host.name)?;
        check.host(&key, host)?;
    }
    check.blocks()?;
    for (id, service) in &snapshot.services {
        let key = format!("service/{}", id.0);
        names.claim(&key, "service", &service.name)?;
        check.service(&key, service)?;
    }
    for (id, device) in &snapshot.devices {
        let key = format!("device/{}", id.0);
        names.claim(&key, "device", &device.name)?;
        check.device(&key, *id, device)?;
    }
    routes(snapshot)
}

/// Routes and limits name only services that are there.
fn routes(snapshot: &Snapshot) -> Result<(), ConvertError> {
    let services: HashSet<&Name> =
        snapshot.services.values().map(|service| &service.name).collect();
    for route in &snapshot.routes {
        for name in route.services() {
            if !services.contains(name) {
                let key = format!("route/{}", route.name);
                return fail(&key, format!("there is no service {:?}", name.as_str()));
            }
        }
    }
    for limit in &snapshot.limits {
        if !services.contains(&limit.service) {
            let key = format!("limit/{}", limit.name);
            return fail(&key, format!("there is no service {:?}", limit.service.as_str()));
        }
    }
    Ok(())
}

struct Check<'a> {
    snapshot: &'a Snapshot,
    /// Owner of an IPv4 address.
    taken: HashMap<Ipv4Addr, String>,
    /// Owner of a tunnel key: two peers with one key can't be told apart.
    keys: HashMap<PublicKey, String>,
}

impl Check<'_> {
    fn mesh(&mut self) -> Result<(), ConvertError> {
        let (mesh, local) = (&self.snapshot.mesh, self.snapshot.local);
        if !mesh.ipv4.contains(&mesh.virtual_ipv4) {
            let (part, whole) = (mesh.virtual_ipv4, mesh.ipv4);
            return fail("mesh", format!("virtual_ipv4: {part} isn't inside of {whole}"));
        }
        if !self.snapshot.hosts.contains_key(&local) {
            return fail("mesh", format!("local: there is no host/{}", local.0));
        }
        self.take("mesh", mesh.anycast_ipv4())
    }

    fn host(&mut self, key: &str, host: &Host) -> Result<(), ConvertError> {
        let mesh = &self.snapshot.mesh;
        let block = host.ipv4_block;
        if !mesh.ipv4.contains(&block) {
            return fail(key, format!("ipv4_block: {block} isn't inside of {}", mesh.ipv4));
        }
        if overlap(block, mesh.virtual_ipv4) {
            let range = mesh.virtual_ipv4;
            return fail(key, format!("ipv4_block: {block} overlaps virtual_ipv4, {range}"));
        }
        self.claim_key(key, host.public_key)?;
        host.former_key.map_or(Ok(()), |former| self.claim_key(key, former))?;
        self.take(key, host.ipv4())
    }

    /// No two hosts' blocks overlap: sorted, each must end before the next begins.
    fn blocks(&self) -> Result<(), ConvertError> {
        let mut blocks: Vec<(Ipv4Net, HostId)> =
            self.snapshot.hosts.iter().map(|(id, host)| (host.ipv4_block, *id)).collect();
        blocks.sort_by_key(|(block, id)| (block.network(), block.prefix_len(), *id));
        for pair in blocks.windows(2) {
            if let [(one, first), (other, second)] = pair
                && overlap(*one, *other)
            {
                let reason = format!("ipv4_block: {other} overlaps {one} of host/{}", first.0);
                return fail(&format!("host/{}", second.0), reason);
            }
        }
        Ok(())
    }

    fn service(&mut self, key: &str, service: &Service) -> Result<(), ConvertError> {
        let range = self.snapshot.mesh.virtual_ipv4;
        if !range.contains(&service.virtual_ipv4) {
            let address = service.virtual_ipv4;
            return fail(key, format!("virtual_ipv4: {address} isn't inside of {range}"));
        }
        self.take(key, service.virtual_ipv4)?;
        let mut ports = HashSet::from([service.layer4()]);
        if let Some(twice) = service.more.iter().find(|it| !ports.insert(it.layer4())) {
            return fail(key, format!("more: it has port {} twice", twice.port));
        }
        for (host, ipv4) in &service.placements {
            self.in_block(key, "placements", *host, *ipv4)?;
        }
        let unplaced = |host: &&HostId| !service.placements.contains_key(host);
        if let Some(host) = service.leaving.iter().find(unplaced) {
            return fail(key, format!("leaving: it has no workload on host/{}", host.0));
        }
        Ok(())
    }

    fn device(&mut self, key: &str, id: DeviceId, device: &Device) -> Result<(), ConvertError> {
        if self.snapshot.services.contains_key(&ServiceId(id.0)) {
            return fail(key, format!("its number is that of service/{}", id.0));
        }
        self.claim_key(key, device.public_key)?;
        self.in_block(key, "via", device.via, device.ipv4)
    }

    fn in_block(
        &mut self,
        key: &str,
        field: &str,
        host: HostId,
        ipv4: Ipv4Addr,
    ) -> Result<(), ConvertError> {
        let Some(block) = self.snapshot.hosts.get(&host).map(|host| host.ipv4_block) else {
            return fail(key, format!("{field}: there is no host/{}", host.0));
        };
        if !block.contains(&ipv4) {
            let reason = format!("{field}: {ipv4} isn't in the block of host/{}, {block}", host.0);
            return fail(key, reason);
        }
        self.take(key, ipv4)
    }

    fn take(&mut self, key: &str, ipv4: Ipv4Addr) -> Result<(), ConvertError> {
        match self.taken.insert(ipv4, key.to_owned()) {
            None => Ok(()),
            Some(owner) => fail(key, format!("the address {ipv4} belongs to {owner}")),
        }
    }

    fn claim_key(&mut self, key: &str, public_key: PublicKey) -> Result<(), ConvertError> {
        match self.keys.insert(public_key, key.to_owned()) {
            None => Ok(()),
            Some(owner) => fail(key, format!("its public key belongs to {owner}")),
        }
    }
}

/// Names, by kind: those of one kind are unique.
#[derive(Default)]
struct Names<'a>(HashMap<(&'static str, &'a Name), String>);

impl<'a> Names<'a> {
    fn claim(&mut self, key: &str, kind: &'static str, name: &'a Name) -> Result<(), ConvertError> {
        match self.0.insert((kind, name), key.to_owned()) {
            None => Ok(()),
            Some(owner) => fail(key, format!("the name {:?} belongs to {owner}", name.as_str())),
        }
    }
}

fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

fn fail(key: &str, reason: String) -> Result<(), ConvertError> {
    Err(ConvertError::new(key, reason))
}
