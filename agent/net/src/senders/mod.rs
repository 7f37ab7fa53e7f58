//! Packet senders, noted by the kernel when a packet is sent.
//!
//! A look-up by [`crate::sock_diag`] asks for a socket some time after its packet was sent. Of a
//! program that makes a socket, sends a datagram and closes it, nothing is found any more; and of a
//! port that changed hands meanwhile, the wrong one. While the packet is on its way to the TUN device
//! its socket is at hand, though: a program there (`program.rs`) notes for each flow of UDP which
//! socket has sent last, with its user and its cgroup.
//!
//! It also is where a flood can end before it costs others anything: the device's queue holds some
//! hundred packets of all users together. The agent says which flows and whose packets aren't to come
//! for a while.
//!
//! Everything goes with its last descriptor, the attached program with the device.

mod attach;
mod program;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::bpf::{self, Map, MapKind};

/// Flows remembered of each kind. One that makes room is noted again with its next packet.
const FLOWS: u32 = 16_384;
/// Owners that are held back at a time.
const OWNERS: u32 = 1024;
/// Flows share so many counts of changes.
const CHANGE_SLOTS: u32 = 4096;

const FLOW_KEY: usize = 36;
const OWNER_KEY: usize = 16;
const SENDER: usize = 40;
const REFUSED: usize = 16;
const HELD_BACK: usize = 16;
/// How long an owner is watched after having been held back, and how often it may send then.
const WATCHED: Duration = Duration::from_secs(1);
const ONE_IN: Duration = Duration::from_millis(1);

/// The kernel's notes about who sends by the TUN device.
#[derive(Debug)]
pub struct Senders {
    program: OwnedFd,
    maps: Maps,
    shared: SharedArray,
}

/// What the program works with.
#[derive(Debug)]
struct Maps {
    /// Flow key to sender. The program alone writes it.
    senders: Map,
    /// Flow key to the time until which it is refused, and the cookie of the socket that is meant.
    refused: Map,
    /// Owner key to the time until which it is held back, and the time until which it is watched.
    held_back: Map,
    /// The counts of changes, and behind them the [`Slot`]s.
    shared: Map,
}

/// Places in the shared array behind the counts of changes.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Denied,
    HeldBack,
    Routed,
    /// The time until which some flow is refused.
    RefusedUntil,
}

impl Slot {
    const COUNT: u32 = 4;

    const fn index(self) -> u32 {
        CHANGE_SLOTS + self as u32
    }
}

/// Sender of a flow's last packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Tells the socket from all others, of now and before.
    pub cookie: u64,
    /// The user who made it.
    pub uid: u32,
    /// The cgroup in which it was made.
    pub cgroup_id: u64,
    /// How long ago the flow came from another user or cgroup to this, if it did and the one before had
    /// sent shortly before: packets of that one may still wait in the device's queue.
    pub taken_over: Option<Duration>,
}

/// Packets dropped before they reached the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Of flows that were refused shortly before.
    pub denied: u64,
    /// That would have opened flows, of owners whose flows are refused all the time.
    pub held_back: u64,
    /// IPv6 with a routing header.
    pub routed: u64,
}

impl Senders {
    /// Loads the program and makes what it works with. To be called before privileges are dropped;
    /// nothing else here needs CAP_BPF.
    ///
    /// # Errors
    /// Without CAP_BPF and CAP_NET_ADMIN, or where the kernel can't do it.
    pub fn load() -> Result<Self, SendersError> {
        let map = |kind, key, value, entries| {
            Map::create(kind, key, value, entries).map_err(SendersError::Load)
        };
        let slots = CHANGE_SLOTS + Slot::COUNT;
        let maps = Maps {
            senders: map(MapKind::LruHash, FLOW_KEY, SENDER, FLOWS)?,
            refused: map(MapKind::LruHash, FLOW_KEY, REFUSED, FLOWS)?,
            held_back: map(MapKind::LruHash, OWNER_KEY, HELD_BACK, OWNERS)?,
            shared: map(MapKind::SharedArray, 4, 8, slots)?,
        };
        let shared = SharedArray::new(&maps.shared, slots as usize).map_err(SendersError::Load)?;
        let program = program::program(&maps)
            .ok_or_else(|| SendersError::Load(io::ErrorKind::InvalidData.into()))?;
        let program = bpf::load(&program).map_err(SendersError::Load)?;
        Ok(Self { program, maps, shared })
    }

    /// Has the program see all packets on their way to a device; it stays there as long as the
    /// device does.
    ///
    /// # Errors
    /// When the kernel refuses it, or doesn't let the notes be read.
    pub fn attach(&self, device: u32) -> Result<(), SendersError> {
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        // Before Linux 5.19 a host that forbids bpf(2) to users forbids this, too.
        self.lookup(nobody, nobody).map_err(SendersError::Read)?;
        attach::to_egress(device, &self.program).map_err(SendersError::Attach)
    }

    /// Sender of the last UDP packet from `local` to `remote` through the device.
    #[must_use]
    pub fn sender(&self, local: SocketAddr, remote: SocketAddr) -> Option<Sender> {
        self.lookup(local, remote).ok().flatten()
    }

    fn lookup(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Sender>> {
        let mut value = [0; SENDER];
        if !self.maps.senders.lookup(&flow_key(local, remote), &mut value)? {
            return Ok(None);
        }
        let field = |at: usize| {
            value
                .get(at..)
                .and_then(|rest| rest.first_chunk())
                .map_or(0, |it| u64::from_ne_bytes(*it))
        };
        let since = field(16);
        let taken_over = (since != 0).then(|| Duration::from_nanos(now().saturating_sub(since)));
        // INVARIANT: the program leaves the upper half of this field 0.
        let uid = u32::from_ne_bytes([value[24], value[25], value[26], value[27]]);
        Ok(Some(Sender { cookie: field(0), uid, cgroup_id: field(8), taken_over }))
    }

    /// Counts the times that a flow between these ports came from another socket than before, some
    /// other flows' among them. Reads memory only.
    #[must_use]
    pub fn changes(&self, local_port: u16, remote_port: u16) -> u32 {
        let ([a, b], [c, d]) = (local_port.to_be_bytes(), remote_port.to_be_bytes());
        let ports = u32::from_ne_bytes([a, b, c, d]);
        let slot = ports.wrapping_mul(program::SPREAD) >> program::SPREAD_SHIFT;
        self.shared.get(slot).map_or(0, |count| count.load(Ordering::Acquire) as u32)
    }

    /// For a time, drops the packets of a flow that come from the socket `cookie`.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn refuse(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        cookie: u64,
        time: Duration,
    ) -> io::Result<()> {
        let until = now().saturating_add(nanos(time));
        let mut value = [0; REFUSED];
        value[..8].copy_from_slice(&until.to_ne_bytes());
        value[8..].copy_from_slice(&cookie.to_ne_bytes());
        self.maps.refused.update(&flow_key(local, remote), &value)?;
        if let Some(slot) = self.shared.get(Slot::RefusedUntil.index()) {
            // Longer: what has expired is still looked up, for the sake of who is held back.
            slot.fetch_max(until.saturating_add(nanos(LOOKED_UP)), Ordering::Release);
        }
        Ok(())
    }

    /// For a time, drops what an owner sends that would open flows, and packets of flows that were
    /// refused before. For a second after it one such packet passes in each millisecond.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn hold_back(&self, owner: Budget, time: Duration) -> io::Result<()> {
        let until = now().saturating_add(nanos(time));
        let mut value = [0; HELD_BACK];
        value[..8].copy_from_slice(&until.to_ne_bytes());
        value[8..].copy_from_slice(&until.saturating_add(nanos(WATCHED)).to_ne_bytes());
        self.maps.held_back.update(&owner_key(owner), &value)
    }

    /// Packets dropped so far.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        let count = |slot: Slot| {
            self.shared.get(slot.index()).map_or(0, |count| count.load(Ordering::Relaxed))
        };
        Dropped {
            denied: count(Slot::Denied),
            held_back: count(Slot::HeldBack),
            routed: count(Slot::Routed),
        }
    }
}

/// How long after the last refusal flows are still looked up among the refused.
const LOOKED_UP: Duration = Duration::from_secs(2);

/// Who has one budget: a user, and of root each cgroup. Others could make themselves as many cgroups
/// as they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    uid: u32,
    cgroup_id: u64,
}

impl Budget {
    /// Budget that a socket's packets are charged to.
    #[must_use]
    pub const fn of(uid: u32, cgroup_id: u64) -> Self {
        Self { uid, cgroup_id: if uid == 0 { cgroup_id } else { 0 } }
    }

    #[must_use]
    pub const fn uid(self) -> u32 {
        self.uid
    }
}

/// Why there are no notes.
#[derive(Debug, thiserror::Error)]
pub enum SendersError {
    #[error("the program that notes senders can't be loaded: it needs CAP_BPF, and Linux 5.8")]
    Load(#[source] io::Error),
    #[error("the program that notes senders can't be attached to the overlay's device")]
    Attach(#[source] io::Error),
    #[error("what is noted of senders can't be read: Linux before 5.19 wants CAP_BPF for it")]
    Read(#[source] io::Error),
}

/// ```text
///  0  source 16, destination 16 (IPv4 mapped)
/// 32  source port 2, destination port 2 (big endian)
/// ```
fn flow_key(local: SocketAddr, remote: SocketAddr) -> [u8; FLOW_KEY] {
    let mut key = [0; FLOW_KEY];
    key[..16].copy_from_slice(&mapped(local.ip()));
    key[16..32].copy_from_slice(&mapped(remote.ip()));
    key[32..34].copy_from_slice(&local.port().to_be_bytes());
    key[34..].copy_from_slice(&remote.port().to_be_bytes());
    key
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// ```text
///  0  cgroup 8, user 4, zero 4
/// ```
fn owner_key(owner: Budget) -> [u8; OWNER_KEY] {
    let mut key = [0; OWNER_KEY];
    key[..8].copy_from_slice(&owner.cgroup_id.to_ne_bytes());
    key[8..12].copy_from_slice(&owner.uid.to_ne_bytes());
    key
}

/// The time as the program reads it (CLOCK_MONOTONIC).
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call, which writes it.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let rest = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// An array of the kernel's, in this process's memory.
#[derive(Debug)]
struct SharedArray {
    start: NonNull<AtomicU64>,
    length: usize,
}

// SAFETY: what it points to is atomic, and stays mapped as long as this value lives.
unsafe impl Send for SharedArray {}
// SAFETY: likewise.
unsafe impl Sync for SharedArray {}

impl SharedArray {
    fn new(map: &Map, length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping, which overlaps nothing; the descriptor is open.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length * size_of::<AtomicU64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { start, length })
    }

    fn get(&self, index: u32) -> Option<&AtomicU64> {
        let index = index as usize;
        // SAFETY: so many are mapped, page-aligned, for as long as `self` lives.
        (index < self.length).then(|| unsafe { self.start.add(index).as_ref() })
    }
}

impl Drop for SharedArray {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody has references into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length * size_of::<AtomicU64>()) };
    }
}

#[cfg(test)]
mod tests;
