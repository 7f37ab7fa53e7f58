//! Allocation of numbers and addresses.
//!
//! Allocation is stable: what has a number or an address keeps it until it is removed, and has it again
//! where it comes back (a rollback, a mistake that is mended). Numbers are counted up and never given to
//! another name; addresses come back into use as late as possible.

mod error;
mod host;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use isthmus_model::topology::{MeshDecl, Topology};
use isthmus_model::{DeviceId, HostId, Ipv4Net, Name, ServiceId};
use serde::{Deserialize, Serialize};

use self::host::{Taken, nth, overlap, size};
use crate::inventory::{Inventory, Member, declared, devices_on, services_on};
use crate::leaving::Leaving;
use crate::pool::Cursor;
use crate::text;

pub use self::error::AllocationError;

/// Removed services and devices whose numbers and addresses are remembered.
const REMEMBERED: usize = 1_024;

/// All numbers and addresses of a mesh.
///
/// INVARIANT: no two things share a number of one space, a block, or an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// What the addresses below were taken from; none before the first use.
    ranges: Option<Ranges>,
    last_host: u32,
    /// First and last of numbers that another history may have given.
    #[serde(default)]
    lost_hosts: Vec<(u32, u32)>,
    /// Services and devices share one number space.
    last_number: u32,
    services: BTreeMap<String, Service>,
    devices: BTreeMap<String, u32>,
    /// Services and devices that were removed, the last one last.
    #[serde(default)]
    former: VecDeque<Former>,
    /// By the host's number.
    hosts: BTreeMap<u32, Host>,
    block_cursor: Cursor,
    virtual_cursor: Cursor,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ranges {
    #[serde(with = "text")]
    ipv4: Ipv4Net,
    #[serde(with = "text")]
    virtual_ipv4: Ipv4Net,
    host_block: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Service {
    number: u32,
    virtual_ipv4: Ipv4Addr,
}

/// Former allocation of a service or a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    name: String,
    number: u32,
    /// Of a service.
    virtual_ipv4: Option<Ipv4Addr>,
    /// By the host's number.
    addresses: BTreeMap<u32, Ipv4Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Host {
    #[serde(with = "text")]
    block: Ipv4Net,
    /// By number of the service or device.
    addresses: BTreeMap<u32, Ipv4Addr>,
    cursor: Cursor,
}

impl Allocation {
    /// The number of a service.
    #[must_use]
    pub fn service(&self, name: &Name) -> Option<ServiceId> {
        self.services.get(name.as_str()).map(|service| ServiceId(service.number))
    }

    /// The virtual IPv4 address of a service.
    #[must_use]
    pub fn virtual_ipv4(&self, name: &Name) -> Option<Ipv4Addr> {
        self.services.get(name.as_str()).map(|service| service.virtual_ipv4)
    }

    /// The number of a device.
    #[must_use]
    pub fn device(&self, name: &Name) -> Option<DeviceId> {
        self.devices.get(name.as_str()).copied().map(DeviceId)
    }

    /// The block of a host.
    #[must_use]
    pub fn block(&self, host: HostId) -> Option<Ipv4Net> {
        self.hosts.get(&host.0).map(|host| host.block)
    }

    /// The IPv4 address of a service's workload on a host.
    #[must_use]
    pub fn workload(&self, host: HostId, service: ServiceId) -> Option<Ipv4Addr> {
        self.address(host, service.0)
    }

    /// The IPv4 address of a device behind a host.
    #[must_use]
    pub fn device_address(&self, via: HostId, device: DeviceId) -> Option<Ipv4Addr> {
        self.address(via, device.0)
    }

    fn address(&self, host: HostId, number: u32) -> Option<Ipv4Addr> {
        self.hosts.get(&host.0)?.addresses.get(&number).copied()
    }

    /// A number that no host has or had.
    pub(crate) fn next_host(&mut self) -> HostId {
        self.last_host += 1;
        HostId(self.last_host)
    }

    /// Leaves numbers out, since others may have them by a history that this one knows nothing of: of
    /// hosts so many beyond `host`, and so many of services and devices.
    pub(crate) fn skip(&mut self, host: HostId, numbers: u32) {
        let last = self.last_host.max(host.0).saturating_add(numbers);
        self.lost_hosts.push((self.last_host.saturating_add(1), last));
        self.last_host = last;
        self.last_number = self.last_number.saturating_add(numbers);
    }

    /// Whether a number may still be given to a host.
    #[must_use]
    pub const fn may_give(&self, host: HostId) -> bool {
        host.0 > self.last_host
    }

    /// Whether a number was never given to a host.
    #[must_use]
    pub fn never_gave(&self, host: HostId) -> bool {
        let lost = |(first, last): &(u32, u32)| (*first..=*last).contains(&host.0);
        self.may_give(host) || self.lost_hosts.iter().any(lost)
    }

    /// Gives everything in a mesh its number and addresses, and takes back those of what is gone.
    ///
    /// # Errors
    ///
    /// The allocation is then good for nothing: work on a copy.
    pub(crate) fn reconcile(
        &mut self,
        topology: &Topology,
        inventory: &Inventory,
        leaving: &Leaving,
    ) -> Result<(), AllocationError> {
        self.rename(topology);
        self.take_back(topology, inventory);
        self.set_ranges(&topology.mesh, inventory)?;
        self.number_devices(topology);
        self.number_services(topology)?;
        self.give_blocks(topology, inventory)?;
        inventory.members().try_for_each(|member| self.give_addresses(member, topology, leaving))
    }

    /// A service that had another name keeps its number and its virtual address, so that those who know them
    /// still reach it.
    fn rename(&mut self, topology: &Topology) {
        for (name, declared) in &topology.services {
            if self.services.contains_key(name.as_str()) {
                continue;
            }
            let mut former = declared.aliases.iter().map(Name::as_str);
            let had = former.find_map(|alias| self.services.remove(alias));
            self.services.extend(had.map(|had| (name.to_string(), had)));
        }
    }

    fn take_back(&mut self, topology: &Topology, inventory: &Inventory) {
        let members: BTreeSet<u32> = inventory.members().map(|member| member.id.0).collect();
        self.hosts.retain(|host, _| members.contains(host));
        let is_gone = |name: &String| !topology.services.contains_key(name.as_str());
        for (name, service) in self.services.extract_if(.., |name, _| is_gone(name)) {
            let virtual_ipv4 = Some(service.virtual_ipv4);
            self.former.push_back(Former::new(name, service.number, virtual_ipv4, &self.hosts));
        }
        let is_gone = |name: &String| !topology.devices.contains_key(name.as_str());
        for (name, number) in self.devices.extract_if(.., |name, _| is_gone(name)) {
            self.former.push_back(Former::new(name, number, None, &self.hosts));
        }
        let beyond = self.former.len().saturating_sub(REMEMBERED);
        self.former.drain(..beyond);
    }

    /// What a service, or a device, had when it was removed. Its workloads have their addresses again, as
    /// far as nobody else has them now.
    fn come_back(&mut self, name: &Name, is_service: bool) -> Option<Former> {
        let is_it =
            |it: &Former| it.name == name.as_str() && it.virtual_ipv4.is_some() == is_service;
        let former = self.former.remove(self.former.iter().rposition(is_it)?)?;
        for (host, address) in &former.addresses {
            let Some(host) = self.hosts.get_mut(host) else { continue };
            let is_free = host.addresses.values().all(|taken| taken != address);
            // The block may be another one since: its first address is the host's own.
            let is_workloads = host.block.contains(address) && *address != host.block.network();
            if is_free && is_workloads {
                host.addresses.insert(former.number, *address);
            }
        }
        Some(former)
    }

    fn set_ranges(
        &mut self,
        mesh: &MeshDecl,
        inventory: &Inventory,
    ) -> Result<(), AllocationError> {
        let wanted = Ranges {
            ipv4: mesh.ipv4,
            virtual_ipv4: mesh.virtual_ipv4,
            host_block: mesh.host_block,
        };
        if self.ranges.as_ref() == Some(&wanted) {
            return Ok(());
        }
        match &self.ranges {
            Some(was) if !inventory.is_empty() => return Err(was.change_to(&wanted)),
            Some(_) | None => {}
        }
        // Numbers stay, addresses are taken anew.
        for service in self.services.values_mut() {
            service.virtual_ipv4 = Ipv4Addr::UNSPECIFIED;
        }
        self.virtual_cursor = Cursor::default();
        self.block_cursor = Cursor::default();
        self.ranges = Some(wanted);
        Ok(())
    }

    fn number_devices(&mut self, topology: &Topology) {
        for name in topology.devices.keys() {
            if !self.devices.contains_key(name.as_str()) {
                let number = match self.come_back(name, false) {
                    Some(former) => former.number,
                    None => self.next_number(),
                };
                self.devices.insert(name.to_string(), number);
            }
        }
    }

    const fn next_number(&mut self) -> u32 {
        self.last_number += 1;
        self.last_number
    }

    fn number_services(&mut self, topology: &Topology) -> Result<(), AllocationError> {
        let pool = topology.mesh.virtual_ipv4;
        let mut taken: BTreeSet<Ipv4Addr> =
            self.services.values().map(|service| service.virtual_ipv4).collect();
        // The first one is the mesh's anycast address.
        taken.insert(pool.network());
        for name in topology.services.keys() {
            let known = self.services.get(name.as_str());
            if known.is_some_and(|service| !service.virtual_ipv4.is_unspecified()) {
                continue;
            }
            let number = known.map(|service| service.number);
            let former = if number.is_none() { self.come_back(name, true) } else { None };
            let number = match (number, &former) {
                (Some(number), _) => number,
                (None, Some(former)) => former.number,
                (None, None) => self.next_number(),
            };
            let had = former.and_then(|it| it.virtual_ipv4);
            let virtual_ipv4 = match had {
                Some(had) if pool.contains(&had) && !taken.contains(&had) => had,
                Some(_) | None => self.free_virtual(pool, &taken, name)?,
            };
            taken.insert(virtual_ipv4);
            self.services.insert(name.to_string(), Service { number, virtual_ipv4 });
        }
        Ok(())
    }

    /// One that nobody has; and if there is one, nobody had either who could come back.
    fn free_virtual(
        &mut self,
        pool: Ipv4Net,
        taken: &BTreeSet<Ipv4Addr>,
        service: &Name,
    ) -> Result<Ipv4Addr, AllocationError> {
        let had: BTreeSet<Ipv4Addr> =
            self.former.iter().filter_map(|former| former.virtual_ipv4).collect();
        let is_free = |index| !taken.contains(&nth(pool, index));
        let is_nobodys = |index| is_free(index) && !had.contains(&nth(pool, index));
        let count = size(pool);
        let index = self
            .virtual_cursor
            .next_free(count, is_nobodys)
            .or_else(|| self.virtual_cursor.next_free(count, is_free))
            .ok_or_else(|| AllocationError::NoVirtualLeft { service: service.clone(), pool })?;
        Ok(nth(pool, index))
    }

    fn give_blocks(
        &mut self,
        topology: &Topology,
        inventory: &Inventory,
    ) -> Result<(), AllocationError> {
        for member in inventory.members() {
            let fixed = declared(member, topology).and_then(|host| host.ipv4_block);
            if let Some(block) = fixed
                && self.block(member.id) != Some(block)
            {
                self.hosts.insert(member.id.0, Host::new(block));
            }
        }
        self.check_fixed(topology, inventory)?;
        let mut taken = Taken::new(topology.mesh.virtual_ipv4);
        topology.hosts.values().filter_map(|host| host.ipv4_block).for_each(|b| taken.insert(b));
        self.hosts.values().for_each(|host| taken.insert(host.block));
        for member in inventory.members() {
            if !self.hosts.contains_key(&member.id.0) {
                let block = self.free_block(&topology.mesh, &taken, &member.name)?;
                taken.insert(block);
                self.hosts.insert(member.id.0, Host::new(block));
            }
        }
        Ok(())
    }

    /// A block that the operator fixed may meet one that was handed out before.
    fn check_fixed(
        &self,
        topology: &Topology,
        inventory: &Inventory,
    ) -> Result<(), AllocationError> {
        for (host, declared) in &topology.hosts {
            let Some(block) = declared.ipv4_block else { continue };
            for other in inventory.members().filter(|member| member.name != *host) {
                let Some(theirs) = self.block(other.id) else { continue };
                if overlap(block, theirs) {
                    let (host, by) = (host.clone(), other.name.clone());
                    return Err(AllocationError::BlockTaken { host, block, by, theirs });
                }
            }
        }
        Ok(())
    }

    fn free_block(
        &mut self,
        mesh: &MeshDecl,
        taken: &Taken,
        host: &Name,
    ) -> Result<Ipv4Net, AllocationError> {
        let (pool, length) = (mesh.ipv4, mesh.host_block);
        let count = length
            .checked_sub(pool.prefix_len())
            .and_then(|bits| 1_u64.checked_shl(bits.into()))
            .unwrap_or(0);
        let none_left = || AllocationError::NoBlockLeft { host: host.clone(), length, pool };
        let block = |index: u64| {
            let first = nth(pool, index << 32_u8.saturating_sub(length));
            Ipv4Net::new(first, length).ok()
        };
        let index = self
            .block_cursor
            .next_free(count, |index| block(index).is_some_and(|block| taken.leaves(block)))
            .ok_or_else(none_left)?;
        block(index).ok_or_else(none_left)
    }

    fn give_addresses(
        &mut self,
        member: &Member,
        topology: &Topology,
        leaving: &Leaving,
    ) -> Result<(), AllocationError> {
        let services = services_on(member, topology)
            .chain(leaving.on(member.id))
            .filter_map(|name| self.services.get(name.as_str()))
            .map(|service| service.number);
        let devices = devices_on(member, topology)
            .filter_map(|name| self.devices.get(name.as_str()).copied());
        let wanted: BTreeSet<u32> = services.chain(devices).collect();
        let fixed = devices_on(member, topology).filter_map(|name| {
            let number = self.devices.get(name.as_str()).copied()?;
            Some((number, topology.devices.get(name)?.ipv4?))
        });
        let fixed: BTreeMap<u32, Ipv4Addr> = fixed.collect();
        let had = self.former.iter().filter_map(|it| it.addresses.get(&member.id.0).copied());
        let had: BTreeSet<Ipv4Addr> = had.collect();
        let Some(host) = self.hosts.get_mut(&member.id.0) else { return Ok(()) };
        host.give_addresses(&wanted, &fixed, &had).map_err(|room| AllocationError::BlockFull {
            host: member.name.clone(),
            block: host.block,
            wanted: wanted.len(),
            room,
        })
    }
}

impl Ranges {
    fn change_to(&self, wanted: &Self) -> AllocationError {
        let (key, was, wanted) = if self.ipv4 != wanted.ipv4 {
            ("ipv4", self.ipv4.to_string(), wanted.ipv4.to_string())
        } else if self.virtual_ipv4 != wanted.virtual_ipv4 {
            ("virtual_ipv4", self.virtual_ipv4.to_string(), wanted.virtual_ipv4.to_string())
        } else {
            ("host_block", self.host_block.to_string(), wanted.host_block.to_string())
        };
        AllocationError::RangeInUse { key, was, wanted }
    }
}

impl Former {
    fn new(
        name: String,
        number: u32,
        virtual_ipv4: Option<Ipv4Addr>,
        hosts: &BTreeMap<u32, Host>,
    ) -> Self {
        let addresses = hosts
            .iter()
            .filter_map(|(host, of)| Some((*host, *of.addresses.get(&number)?)))
            .collect();
        Self { name, number, virtual_ipv4, addresses }
    }
}
