//! The TUN device: where the host's IP packets enter and leave the overlay.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// The virtio-net header that every frame begins with (`struct virtio_net_hdr`).
pub const VNET_HEADER: usize = 10;
/// More frames than a queue of the device ever holds (`tx_queue_len`, 1,000 for the overlay's).
const WAITING_MAX: usize = 4096;
/// A TUN device gives no frame longer than this, whatever its MTU.
pub const FRAME_BYTES_MAX: usize = VNET_HEADER + 65_535;

/// A layer 3 device of our own, gone when this value is dropped or the process dies, unless somebody
/// else has its queues, too ([`Tun::queues`]).
///
/// One read or write is one frame: a virtio-net header, and an IP packet that may stand for many.
/// Where the kernel can't do that, frames have an empty header all the same, and writes must.
/// Reads and writes never block.
///
/// A device has one queue or several. The kernel hands a flow's frames to the queue that frames of
/// the flow were written to last, or else spreads flows over the queues.
pub struct Tun {
    queues: Vec<File>,
    name: String,
    index: u32,
    offloads: Offloads,
}

/// Offloads between the kernel and the device's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums, and TCP packets that stand for many.
    pub tcp: bool,
    /// UDP packets that stand for many (Linux 6.2).
    pub udp: bool,
}

impl Tun {
    /// Creates the device `name` with one queue; it has no addresses and is down.
    ///
    /// # Errors
    /// A device of that name must not exist: adopting one would mean to delete, on exit,
    /// something that the agent didn't make.
    pub fn create(name: &str, mtu: u32) -> Result<Self, TunError> {
        Self::with_queues(name, mtu, 1)
    }

    /// Creates the device `name` with so many queues, at least one.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn with_queues(name: &str, mtu: u32, queues: usize) -> Result<Self, TunError> {
        check_name(name)?;
        let mtu = u16::try_from(mtu).map_err(|_| TunError::BadMtu(mtu))?;
        if interface_index(name).is_some() {
            return Err(TunError::Exists(name.to_owned()));
        }
        let build = |offload| {
            DeviceBuilder::new()
                .name(name)
                .mtu(mtu)
                .layer(Layer::L3)
                .packet_information(false)
                .offload(offload)
                .multi_queue(queues > 1)
                .enable(false)
                .build_sync()
        };
        let device = match build(true) {
            // A kernel without the offloads says that the arguments are wrong.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(false),
            built => built,
        }
        .map_err(|error| TunError::from_create(name, error))?;
        let index =
            device.if_index().map_err(|source| TunError::os("read the index of", source))?;
        let offloads = Offloads { tcp: device.tcp_gso(), udp: device.udp_gso() };
        let mut devices = vec![device];
        while let [first, ..] = devices.as_slice()
            && devices.len() < queues
        {
            let next = first.try_clone().map_err(|error| TunError::os("add a queue to", error))?;
            devices.push(next);
        }
        let queues = devices.iter().map(frames_of).collect::<Result<_, _>>()?;
        Ok(Self { queues, name: name.to_owned(), index, offloads })
    }

    /// Goes on with the device `name`, all of whose queues somebody has kept from an earlier life of this
    /// process; it has the addresses that it had.
    ///
    /// # Errors
    /// One of these isn't a queue of that device, or the device is gone.
    pub fn adopt(name: &str, queues: Vec<OwnedFd>, offloads: Offloads) -> Result<Self, TunError> {
        let index = interface_index(name).filter(|_| !queues.is_empty());
        let queues: Vec<File> = queues.into_iter().map(File::from).collect();
        match index {
            Some(index) if queues.iter().all(|queue| is_queue_of(queue, name)) => {
                Ok(Self { queues, name: name.to_owned(), index, offloads })
            }
            _ => Err(TunError::NotKept(name.to_owned())),
        }
    }

    /// Drops what waits in the queues.
    pub fn discard_waiting(&self) {
        // Room for the header; a frame that is cut is taken all the same.
        let mut frame = [0; 2 * VNET_HEADER];
        for mut queue in &self.queues {
            // A queue holds fewer, and a flood mustn't keep anybody here.
            for _ in 0..WAITING_MAX {
                if queue.read(&mut frame).is_err() {
                    break;
                }
            }
        }
    }

    /// All queues. The device is there for as long as anybody has one of them.
    pub fn queues(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.queues.iter().map(AsFd::as_fd)
    }

    /// Capabilities of the kernel.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// To wait for frames of a queue.
    pub fn queue(&self, queue: usize) -> Option<BorrowedFd<'_>> {
        Some(self.queues.get(queue)?.as_fd())
    }

    /// Reads one frame from a queue; a longer one than `buffer` is cut, so give it
    /// [`FRAME_BYTES_MAX`].
    ///
    /// # Errors
    /// `WouldBlock` when no frame waits.
    pub fn recv(&self, queue: usize, buffer: &mut [u8]) -> io::Result<usize> {
        let mut frames = self.frames(queue)?;
        if self.offloads.tcp {
            return frames.read(buffer);
        }
        let (header, packet) =
            buffer.split_at_mut_checked(VNET_HEADER).ok_or(io::ErrorKind::InvalidInput)?;
        header.fill(0);
        Ok(VNET_HEADER + frames.read(packet)?)
    }

    /// Hands one frame to the host's stack, by a queue. The first piece holds the virtio-net header.
    ///
    /// # Errors
    /// `EINVAL` for bytes that aren't a frame, `EIO` while the device is down.
    pub fn send(&self, queue: usize, frame: &[IoSlice<'_>]) -> io::Result<()> {
        let mut frames = self.frames(queue)?;
        if self.offloads.tcp {
            return frames.write_vectored(frame).map(drop);
        }
        match frame {
            [header, packet @ ..] if header.len() == VNET_HEADER => {
                frames.write_vectored(packet).map(drop)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn frames(&self, queue: usize) -> io::Result<&File> {
        Ok(self.queues.get(queue).ok_or(io::ErrorKind::NotFound)?)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn index(&self) -> u32 {
        self.index
    }
}

fn frames_of(device: &SyncDevice) -> Result<File, TunError> {
    device.set_nonblocking(true).map_err(|source| TunError::os("make non-blocking", source))?;
    let frames = device.as_fd().try_clone_to_owned();
    Ok(frames.map_err(|source| TunError::os("duplicate", source))?.into())
}

/// The kernel names the device of a queue; of one that is gone it names none.
fn is_queue_of(queue: &File, device: &str) -> bool {
    let path = format!("/proc/thread-self/fdinfo/{}", queue.as_raw_fd());
    let Ok(told) = std::fs::read_to_string(path) else { return false };
    told.lines().any(|line| line.strip_prefix("iff:").map(str::trim) == Some(device))
}

impl std::fmt::Debug for Tun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tun").field("name", &self.name).field("index", &self.index).finish()
    }
}

/// Why the TUN device couldn't be made; each message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    #[error("'{0}' isn't a device name: use 1 to 15 characters, no '/', ':' or blank")]
    BadName(String),
    #[error("an MTU of {0} is out of range: a TUN device takes up to 65535")]
    BadMtu(u32),
    #[error(
        "a device named {0} exists already: stop the agent that owns it, remove it with \
         'ip link delete {0}', or choose another name"
    )]
    Exists(String),
    #[error("the device {0} that was kept is gone, or isn't as the settings want it")]
    NotKept(String),
    #[error(
        "/dev/net/tun is missing: load the kernel's 'tun' module, or give the container \
         '--device /dev/net/tun'"
    )]
    NoTunDriver,
    #[error(
        "creating {0} isn't permitted: needs CAP_NET_ADMIN and access to /dev/net/tun (run as \
         root, or set AmbientCapabilities=CAP_NET_ADMIN in the unit)"
    )]
    NotPermitted(String),
    #[error("the kernel refused to {step} the TUN device")]
    Os { step: &'static str, source: io::Error },
}

impl TunError {
    fn from_create(name: &str, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted(name.to_owned()),
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Self::NoTunDriver,
            Some(libc::EBUSY | libc::EEXIST) => Self::Exists(name.to_owned()),
            _ => Self::os("create", error),
        }
    }

    fn os(step: &'static str, source: io::Error) -> Self {
        Self::Os { step, source }
    }
}

/// Packets that an interface has dropped, as the kernel counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceDrops {
    /// From the host: of a TUN device, those for which its queue had no room.
    pub sent: u64,
    /// To the host.
    pub received: u64,
}

/// Number of packets dropped by an interface of this thread's network namespace.
pub fn device_drops(name: &str) -> Option<DeviceDrops> {
    drops_in(&std::fs::read_to_string("/proc/thread-self/net/dev").ok()?, name)
}

/// Columns: bytes, packets, errors, drops and four more of what was received; then of what was sent.
fn drops_in(table: &str, name: &str) -> Option<DeviceDrops> {
    let line =
        table.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    let mut columns = line.split_whitespace().map(str::parse);
    let received = columns.nth(3)?.ok()?;
    let sent = columns.nth(7)?.ok()?;
    Some(DeviceDrops { sent, received })
}

/// The index of an interface of this thread's network namespace.
pub fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a valid C string for the whole call, and the kernel only reads it.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// The kernel's own rule (`dev_valid_name`), minus '%', which it would expand to a number.
pub(crate) fn valid_interface_name(name: &str) -> bool {
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| "/:%\0".contains(c) || c.is_whitespace())
}

fn check_name(name: &str) -> Result<(), TunError> {
    if valid_interface_name(name) { Ok(()) } else { Err(TunError::BadName(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use socket2::{Domain, Protocol, SockAddr, Socket, Type};

    use super::*;
    use crate::poll::{Events, Interest, Poller};
    use crate::routes::Route;
    use crate::testing::{block_on, in_netns, netlink};

    const OURS: Ipv4Addr = Ipv4Addr::new(100, 64, 9, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(100, 65, 0, 7);

    #[test]
    fn a_ping_is_read_as_a_packet_and_its_answer_reaches_the_socket() {
        in_netns(|| {
            let tun = up_with_address("isth-t0");
            let ping = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
            ping.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let request = [8, 0, 0xf7, 0xfd, 0, 1, 0, 1];
            ping.send_to(&request, &SockAddr::from(std::net::SocketAddr::from((PEER, 0)))).unwrap();

            let mut packet = next_ipv4(&tun);
            assert_eq!(packet[9], 1, "not ICMP: {packet:?}");
            assert_eq!(packet[12..16], OURS.octets(), "the route's source is our address");
            assert_eq!(packet[16..20], PEER.octets());
            assert_eq!(packet[20..28], request);

            // Turned round: swapping the addresses leaves the header's checksum right.
            packet[12..16].copy_from_slice(&PEER.octets());
            packet[16..20].copy_from_slice(&OURS.octets());
            packet[20] = 0;
            packet[22..24].copy_from_slice(&[0xff, 0xfd]);
            tun.send(0, &[IoSlice::new(&[0; VNET_HEADER]), IoSlice::new(&packet)]).unwrap();
            let mut answer = [0; 128];
            let len = io::Read::read(&mut &ping, &mut answer).unwrap();
            assert_eq!(answer[12..16], PEER.octets());
            assert_eq!(answer[20..len], [0, 0, 0xff, 0xfd, 0, 1, 0, 1]);
        });
    }

    #[test]
    fn an_empty_device_would_block() {
        in_netns(|| {
            let tun = Tun::create("isth-t1", 1400).unwrap();
            let error = tun.recv(0, &mut [0; 1500]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert_eq!(Some(tun.index()), interface_index("isth-t1"));
        });
    }

    #[test]
    fn what_finds_the_devices_queue_full_is_counted() {
        in_netns(|| {
            let tun = up_with_address("isth-t5");
            let before = device_drops("isth-t5").unwrap();
            let socket = std::net::UdpSocket::bind((OURS, 0)).unwrap();
            for _ in 0..5000 {
                socket.send_to(b"flood", (PEER, 9)).unwrap();
            }
            let after = device_drops("isth-t5").unwrap();
            assert!(after.sent > before.sent + 1000, "{after:?}");
            assert_eq!(after.received, before.received);
            assert_eq!(device_drops("isth-t"), None);
            drop(tun);
        });
    }

    #[test]
    fn the_device_vanishes_with_its_owner() {
        in_netns(|| {
            drop(Tun::create("isth-t2", 1400).unwrap());
            assert_eq!(interface_index("isth-t2"), None);
        });
    }

    #[test]
    fn a_device_whose_queues_are_kept_outlives_its_owner_with_all_that_waits_in_it() {
        in_netns(|| {
            let tun = up_with_address("isth-t6");
            let (index, offloads) = (tun.index(), tun.offloads());
            let kept: Vec<OwnedFd> =
                tun.queues().map(|queue| queue.try_clone_to_owned().unwrap()).collect();
            drop(tun);
            let socket = std::net::UdpSocket::bind((OURS, 0)).unwrap();
            socket.send_to(b"while nobody reads", (PEER, 9)).unwrap();

            let tun = Tun::adopt("isth-t6", kept, offloads).unwrap();
            assert_eq!(tun.index(), index);
            let packet = next_ipv4(&tun);
            assert!(packet.ends_with(b"while nobody reads"), "{packet:?}");

            for _ in 0..100 {
                socket.send_to(b"unnoticed", (PEER, 9)).unwrap();
            }
            tun.discard_waiting();
            let error = tun.recv(0, &mut [0; 1500]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        });
    }

    #[test]
    fn what_is_not_a_queue_of_the_device_is_not_taken_for_one() {
        in_netns(|| {
            let tun = Tun::with_queues("isth-t7", 1400, 2).unwrap();
            let _other = Tun::create("isth-t8", 1400).unwrap();
            let offloads = tun.offloads();
            let queues = || tun.queues().map(|it| it.try_clone_to_owned().unwrap());
            let refused = |name, queues: Vec<OwnedFd>| {
                matches!(Tun::adopt(name, queues, offloads), Err(TunError::NotKept(_)))
            };
            assert!(refused("isth-t7", Vec::new()));
            assert!(refused("isth-t8", queues().collect()), "another device's");
            let file = File::open("/proc/self/status").unwrap();
            assert!(refused("isth-t7", queues().chain([file.into()]).collect()));
            assert!(Tun::adopt("isth-t7", queues().collect(), offloads).is_ok());
            let deleted =
                std::process::Command::new("ip").args(["link", "delete", "isth-t7"]).status();
            assert!(deleted.unwrap().success());
            assert!(refused("isth-t7", queues().collect()), "the device is gone");
        });
    }

    #[test]
    fn an_existing_device_is_refused_by_name() {
        in_netns(|| {
            let _first = Tun::create("isth-t3", 1400).unwrap();
            let error = Tun::create("isth-t3", 1400).unwrap_err();
            assert!(matches!(&error, TunError::Exists(name) if name == "isth-t3"), "{error:?}");
            assert!(error.to_string().contains("ip link delete isth-t3"), "{error}");
        });
    }

    #[test]
    fn names_that_the_kernel_would_twist_are_refused() {
        for name in ["", "a/b", "isth%d", "a b", "..", "sixteen-letters!"] {
            assert!(matches!(Tun::create(name, 1400), Err(TunError::BadName(_))), "{name:?}");
        }
        assert!(matches!(Tun::create("isth", 70_000), Err(TunError::BadMtu(70_000))));
    }

    #[test]
    fn a_refusal_names_the_missing_capability() {
        let error = TunError::from_create("isth0", io::Error::from_raw_os_error(libc::EPERM));
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    }

    fn up_with_address(name: &str) -> Tun {
        let tun = Tun::create(name, 1400).unwrap();
        block_on(async {
            let netlink = netlink();
            netlink.set_up(tun.index()).await.unwrap();
            netlink.add_address(tun.index(), OURS.into()).await.unwrap();
            let route = Route::via_device("100.64.0.0/10".parse().unwrap(), tun.index())
                .with_source(IpAddr::from(OURS));
            netlink.replace_route(&route).await.unwrap();
        });
        tun
    }

    /// Skips what IPv6 says on a new link (router solicitations, multicast reports).
    fn next_ipv4(tun: &Tun) -> Vec<u8> {
        let poller = Poller::new().unwrap();
        poller.add(&tun.queue(0).unwrap(), 1, Interest::READ).unwrap();
        let mut events = Events::with_capacity(1);
        let mut buffer = [0; 2048];
        loop {
            poller.wait(&mut events, Some(Duration::from_secs(5))).unwrap();
            assert!(!events.is_empty(), "no packet came");
            while let Ok(len) = tun.recv(0, &mut buffer) {
                if buffer[VNET_HEADER] >> 4 == 4 {
                    return buffer[VNET_HEADER..len].to_vec();
                }
            }
        }
    }
}
