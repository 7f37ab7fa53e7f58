//! The underlay: UDP sockets that carry sealed packets, in batches.
//!
//! One socket speaks IPv4 and another IPv6; threads may share them. Reading takes up to 8
//! kernel messages at once, each of which GRO may have made of many datagrams; sending hands the
//! kernel up to 64 equal segments in one call (GSO). Where GSO isn't available, or a driver
//! refuses it, the same calls send the segments one by one.
//!
//! Sending never fails in a way that could stop the data plane: what became of the datagrams is a
//! [`SendOutcome`], and a datagram that wasn't sent is a lost one.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use parking_lot::{RwLock, RwLockReadGuard};

pub use quinn_udp::EcnCodepoint as Ecn;
use quinn_udp::{RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::debug;

use crate::steering::Steering;

/// Large enough for a burst of 40 ms at 1 Gbit/s.
const BUFFER_BYTES: usize = 4 << 20;

/// Messages read at once: more would only leave the processor's cache before they are opened.
pub const BATCH_SIZE: usize = 8;

/// A GRO message is an IP packet as far as its length goes.
const MESSAGE_BYTES: usize = 1 << 16;

/// What one GSO call may hold: the payload of the largest IPv4 packet, less some headroom.
const GSO_BYTES: usize = 65_000;

/// One underlay socket. It never blocks.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    mode: RwLock<Mode>,
    local: SocketAddr,
}

/// How the socket sends. INVARIANT: it is what the kernel was told, whoever holds the lock.
#[derive(Debug)]
struct Mode {
    /// Replaced where it drew the wrong conclusion, see [`UdpSocket::restore_offload`].
    state: UdpSocketState,
    fragments: bool,
}

impl UdpSocket {
    /// Binds to `address`, whose family decides the socket's; IPv6 sockets don't speak IPv4.
    ///
    /// The port isn't shared: an error is better than two agents stealing each other's packets.
    ///
    /// # Errors
    /// `AddrInUse` when another program has the port, `Unsupported`-like errors on a host without
    /// that family.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::bind_as(address, false)
    }

    /// Binds several sockets to one address: each datagram is handed to one of them, see
    /// [`Steering`].
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_group(address: SocketAddr, count: u8, steering: Steering) -> io::Result<Vec<Self>> {
        let first = Self::bind(address)?;
        let mut sockets = vec![first];
        while let [first, ..] = sockets.as_slice()
            && sockets.len() < usize::from(count)
        {
            // Not before it's bound: then it would share the port with any program that does so.
            first.socket.set_reuse_port(true)?;
            sockets.push(Self::bind_as(first.local, true)?);
        }
        if let [first, _, ..] = sockets.as_slice() {
            steering.attach(&first.socket, count)?;
        }
        Ok(sockets)
    }

    fn bind_as(address: SocketAddr, shared: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        grow_buffers(&socket);
        socket.set_reuse_port(shared)?;
        socket.bind(&address.into())?;
        let local = socket
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::Error::other("bound to something that isn't an IP address"))?;
        let state = configure(&socket)?;
        let mode = RwLock::new(Mode { state, fragments: false });
        Ok(Self { socket, mode, local })
    }

    /// Where it is bound, with the port that the kernel chose for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Whether segments are still sent in one call. A driver's refusal turns that off.
    pub fn gso_enabled(&self) -> bool {
        self.mode().state.max_gso_segments() > 1
    }

    /// Refills `batch` with what has arrived and returns how many datagrams that is.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits; `batch` is empty after any error.
    pub fn recv(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.filled = 0;
        let mut chunks = batch.buffer.chunks_exact_mut(MESSAGE_BYTES);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        batch.filled =
            self.mode().state.recv((&self.socket).into(), &mut slices, &mut batch.messages)?;
        Ok(batch.messages[..batch.filled].iter().map(datagrams_in).sum())
    }

    /// Sends `transmit` and says what became of it.
    ///
    /// After anything but [`SendOutcome::Sent`] some of its segments may still have left.
    pub fn send(&self, transmit: &Transmit<'_>) -> SendOutcome {
        let Err(error) = self.send_in_mode(transmit) else { return SendOutcome::Sent };
        if is_gso_refusal(&error) {
            self.restore_offload();
            if transmit.from.is_some() {
                // What the kernel answers to a source address that the host lost.
                return SendOutcome::Unreachable;
            }
        }
        SendOutcome::of(&error)
    }

    /// Sends while the socket allows fragments, or doesn't, as is wished: a system call only when
    /// the wish changes, for nearly all traffic is sent unfragmented.
    fn send_in_mode(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let wished = !transmit.dont_fragment;
        let mode = self.mode();
        if mode.fragments == wished {
            return self.send_by(&mode.state, transmit);
        }
        drop(mode);
        let mut mode = self.mode.write();
        if mode.fragments != wished {
            self.allow_fragments(wished)?;
            mode.fragments = wished;
        }
        self.send_by(&mode.state, transmit)
    }

    fn send_by(&self, state: &UdpSocketState, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = match transmit.segment_size {
            Some(size) if (1..transmit.contents.len()).contains(&size) => size,
            Some(_) | None => return self.send_message(state, transmit, transmit.contents, None),
        };
        if transmit.dont_fragment {
            // Older kernels answer EINVAL to a segment above the MTU, which would turn GSO off:
            // hence no GSO when fragments are wanted.
            match self.send_segmented(state, transmit, segment) {
                Err(error) if is_gso_refusal(&error) => {
                    debug!(%error, "a send of segments failed; sending them one by one");
                }
                result => return result,
            }
        }
        transmit
            .contents
            .chunks(segment)
            .try_for_each(|datagram| self.send_message(state, transmit, datagram, None))
    }

    fn send_segmented(
        &self,
        state: &UdpSocketState,
        transmit: &Transmit<'_>,
        segment: usize,
    ) -> io::Result<()> {
        let segments = state.max_gso_segments().min(GSO_BYTES / segment).max(1);
        transmit
            .contents
            .chunks(segment * segments)
            .try_for_each(|message| self.send_message(state, transmit, message, Some(segment)))
    }

    fn send_message(
        &self,
        state: &UdpSocketState,
        transmit: &Transmit<'_>,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let message = quinn_udp::Transmit {
            destination: transmit.to,
            ecn: transmit.ecn,
            contents,
            segment_size,
            src_ip: transmit.from,
        };
        state.try_send((&self.socket).into(), &message)
    }

    /// quinn-udp takes any EINVAL or EIO for a driver that can't do GSO, and stops using it (and
    /// the ECN mark). When a single datagram fails as well, it was something else: a stale source
    /// address, an impossible destination. One bad packet mustn't slow down all others for good.
    fn restore_offload(&self) {
        if self.gso_enabled() {
            return;
        }
        let mut mode = self.mode.write();
        if let Ok(state) = configure(&self.socket) {
            // A fresh state forbids fragments.
            *mode = Mode { state, fragments: false };
        }
    }

    fn mode(&self) -> RwLockReadGuard<'_, Mode> {
        self.mode.read()
    }

    fn allow_fragments(&self, allow: bool) -> io::Result<()> {
        if self.local.is_ipv4() {
            let mode = if allow { libc::IP_PMTUDISC_DONT } else { libc::IP_PMTUDISC_PROBE };
            return set_option(&self.socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, mode);
        }
        let mode = if allow { libc::IPV6_PMTUDISC_DONT } else { libc::IPV6_PMTUDISC_PROBE };
        set_option(&self.socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, mode)?;
        set_option(&self.socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, libc::c_int::from(!allow))
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What to send: one datagram, or several of `segment_size` (the last may be shorter) in a row.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    pub to: SocketAddr,
    /// The address to send from, where the host has several; `None` leaves it to the routes.
    pub from: Option<IpAddr>,
    pub contents: &'a [u8],
    pub segment_size: Option<usize>,
    pub ecn: Option<Ecn>,
    /// Whether a path that can't carry a datagram whole must drop it.
    pub dont_fragment: bool,
}

impl<'a> Transmit<'a> {
    /// One datagram that isn't to be fragmented.
    pub fn datagram(to: SocketAddr, contents: &'a [u8]) -> Self {
        Self { to, from: None, contents, segment_size: None, ecn: None, dont_fragment: true }
    }
}

/// Outcome of a [`Transmit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendOutcome {
    Sent,
    /// Larger than the interface or the path carries unfragmented.
    TooBig,
    /// No route, no neighbour, no source address, or the interface is down.
    Unreachable,
    /// The kernel's buffers are full: wait for the socket to be writable, or drop.
    Busy,
    /// A firewall, or a security module, forbids it.
    Blocked,
    /// Anything else; the number is the system's `errno`.
    Failed(i32),
}

impl SendOutcome {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error().unwrap_or(0) {
            libc::EMSGSIZE => Self::TooBig,
            libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => Self::Busy,
            libc::EPERM | libc::EACCES => Self::Blocked,
            libc::ECONNREFUSED
            | libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::EHOSTDOWN
            | libc::ENODEV
            | libc::EADDRNOTAVAIL => Self::Unreachable,
            errno => Self::Failed(errno),
        }
    }
}

/// Room for what one [`UdpSocket::recv`] reads, reused from call to call (512 KiB).
pub struct RecvBatch {
    buffer: Vec<u8>,
    messages: [RecvMeta; BATCH_SIZE],
    filled: usize,
}

impl RecvBatch {
    pub fn new() -> Self {
        Self {
            buffer: vec![0; BATCH_SIZE * MESSAGE_BYTES],
            messages: [RecvMeta::default(); BATCH_SIZE],
            filled: 0,
        }
    }

    /// Number of messages.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks: reading fails if nothing came")]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// The messages in the order of arrival.
    pub fn messages(&mut self) -> impl Iterator<Item = Message<'_>> {
        self.buffer.chunks_exact_mut(MESSAGE_BYTES).zip(&self.messages[..self.filled]).map(
            |(chunk, message)| {
                let len = message.len.min(chunk.len());
                Message {
                    from: message.addr,
                    to: message.dst_ip,
                    ecn: message.ecn,
                    contents: &mut chunk[..len],
                    segment_size: message.stride.max(1),
                }
            },
        )
    }
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBatch").field("messages", &self.filled).finish_non_exhaustive()
    }
}

/// What has arrived from one place: a datagram, or several of equal size (the last may be shorter)
/// in a row, which GRO has put together.
#[derive(Debug)]
pub struct Message<'a> {
    pub from: SocketAddr,
    /// Our address that it was sent to.
    pub to: Option<IpAddr>,
    pub ecn: Option<Ecn>,
    pub contents: &'a mut [u8],
    /// The size of each datagram.
    pub segment_size: usize,
}

impl Message<'_> {
    /// Each may be decrypted where it lies.
    pub fn datagrams(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.contents.chunks_mut(self.segment_size)
    }
}

/// The MTU that the kernel believes the path to `remote` has.
///
/// The kernel learns it from the interface and from ICMP errors that match a packet it sent, so it
/// is a fact where [`SendOutcome::TooBig`] can't be had: with a narrow link beyond the first hop.
///
/// # Errors
/// Fails when there is no route.
pub fn path_mtu(remote: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(remote), Type::DGRAM, Some(Protocol::UDP))?;
    socket.connect(&remote.into())?;
    let (level, name) = match remote {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mtu = int_option(&socket, level, name)?;
    usize::try_from(mtu).map_err(|_| io::Error::other("the kernel gave a negative MTU"))
}

/// Sets non-blocking, "don't fragment", GRO and the control messages that we read.
fn configure(socket: &Socket) -> io::Result<UdpSocketState> {
    let state = UdpSocketState::new(socket.into())?;
    // quinn-udp asks for time stamps too, but has no room for them next to a GRO size: the kernel
    // would cut off the address and the ECN mark (seen with 0.6.3).
    set_option(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0)?;
    Ok(state)
}

fn datagrams_in(message: &RecvMeta) -> usize {
    message.len.div_ceil(message.stride.max(1))
}

fn is_gso_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
}

/// `SO_*BUFFORCE` passes the limit of `net.core.*mem_max`, with CAP_NET_ADMIN; without, the limit
/// holds and the kernel gives what it allows.
fn grow_buffers(socket: &Socket) {
    const BYTES: libc::c_int = BUFFER_BYTES as libc::c_int;
    if set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BYTES).is_err() {
        drop(socket.set_recv_buffer_size(BUFFER_BYTES));
    }
    if set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BYTES).is_err() {
        drop(socket.set_send_buffer_size(BUFFER_BYTES));
    }
}

fn set_option(
    socket: &Socket,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    const LEN: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is a live `c_int` of `LEN` bytes, and the descriptor is open.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), LEN)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn int_option(socket: &Socket, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is writable for `len` bytes, and the descriptor is open.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

#[cfg(test)]
mod tests;
