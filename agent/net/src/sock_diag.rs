//! Socket owners by sock_diag: one exact look-up in the kernel per flow.
//!
//! A look-up costs 5 to 15 µs; a dump of all sockets costs a thousand times that on a busy host,
//! and is never made. The kernel's habits that this file knows:
//!
//! - UDP look-ups want source and destination swapped ("for historical reasons"); TCP's don't.
//! - A TCP flow without a connection is answered with the *listener* of its local port.
//! - A connection that no process holds any more (TIME_WAIT, orphans) has inode 0 **and uid 0**.
//!   It isn't root's: such an answer is dropped here.
//! - Sockets of family IPv6 that speak IPv4 are found by the IPv4 flow.
//! - A socket bound to a device is found only by a question that names the device.
//! - A kernel without the module for a protocol answers "not found" to everything: asked once.
//!
//! `ping` sockets (ICMP datagrams) can't be looked up exactly; their owner stays unknown.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// The kernel answers within the call that asks; anything slower is a fault.
const TIMEOUT: Duration = Duration::from_millis(100);

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_MARK: u16 = 15;
const INET_DIAG_CGROUP_ID: u16 = 21;
const NO_COOKIE: [u8; 8] = [0xff; 8];
const ALL_STATES: u32 = u32::MAX;
const TCP_LISTEN: u8 = 10;

pub(crate) const HEADER_LEN: usize = 16;
const REQUEST_LEN: usize = HEADER_LEN + 56;
/// `struct inet_diag_msg`, which attributes follow.
pub(crate) const ANSWER_LEN: usize = 72;

/// A reused connection to the kernel's socket diagnosis, for one network namespace.
#[derive(Debug)]
pub struct SocketDiag {
    socket: Socket,
    sequence: u32,
    interface: u32,
}

impl SocketDiag {
    /// # Errors
    /// `Unsupported` when the kernel lacks the diagnosis of TCP or UDP.
    pub fn open() -> Result<Self, SockDiagError> {
        let protocol = socket2::Protocol::from(libc::NETLINK_SOCK_DIAG);
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))
            .map_err(SockDiagError::Open)?;
        socket.set_read_timeout(Some(TIMEOUT)).map_err(SockDiagError::Open)?;
        let mut diag = Self { socket, sequence: 0, interface: 0 };
        diag.require(Protocol::Tcp)?;
        diag.require(Protocol::Udp)?;
        Ok(diag)
    }

    /// Finds also the sockets that are bound to the device `index` (`SO_BINDTODEVICE`).
    pub fn set_interface(&mut self, index: u32) {
        self.interface = index;
    }

    /// Who owns the socket at the local end of `flow`; `None` when nobody is known to.
    ///
    /// # Errors
    /// When the kernel can't be asked; a later call may succeed.
    pub fn lookup(&mut self, flow: &Lookup) -> Result<Option<SocketOwner>, SockDiagError> {
        let local = canonical(flow.local);
        let remote = canonical(flow.remote);
        if local.is_ipv4() != remote.is_ipv4() {
            return Ok(None);
        }
        let flow = Lookup { local, remote, ..*flow };
        let request = self.request(&flow);
        match self.exchange(&request)? {
            Answer::Socket(found) if found.belongs_to(&flow) => Ok(Some(found.owner)),
            Answer::Socket(_) | Answer::NotFound | Answer::Done => Ok(None),
        }
    }

    /// Who would get a packet that opens a flow to `local` from somewhere far away: who listens there,
    /// by this address or by all; `None` when nobody does.
    ///
    /// # Errors
    /// As [`SocketDiag::lookup`].
    pub fn listener(
        &mut self,
        protocol: Protocol,
        local: SocketAddr,
    ) -> Result<Option<SocketOwner>, SockDiagError> {
        let any = match local {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let request = self.request(&Lookup { protocol, local, remote: any });
        match self.exchange(&request)? {
            Answer::Socket(found) if found.listens_on(protocol, local.port()) => {
                Ok(Some(found.owner))
            }
            Answer::Socket(_) | Answer::NotFound | Answer::Done => Ok(None),
        }
    }

    /// A dump of the sockets in no state at all lists none, but needs the protocol's module.
    fn require(&mut self, protocol: Protocol) -> Result<(), SockDiagError> {
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut request = self.request(&Lookup { protocol, local: any, remote: any });
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        request[6..8].copy_from_slice(&flags.to_ne_bytes());
        request[20..24].copy_from_slice(&0_u32.to_ne_bytes());
        match self.exchange(&request)? {
            Answer::Done | Answer::Socket(_) => Ok(()),
            Answer::NotFound => Err(SockDiagError::Unsupported(protocol)),
        }
    }

    /// ```text
    ///  0  nlmsghdr: length 4, type 2, flags 2, sequence 4, port 4
    /// 16  inet_diag_req_v2: family 1, protocol 1, extensions 1, padding 1, states 4
    /// 24  inet_diag_sockid: ports 2 + 2 (big endian), addresses 16 + 16, interface 4, cookie 8
    /// ```
    pub(crate) fn request(&mut self, flow: &Lookup) -> [u8; REQUEST_LEN] {
        self.sequence = self.sequence.wrapping_add(1);
        let (source, destination) = match flow.protocol {
            Protocol::Tcp => (flow.local, flow.remote),
            Protocol::Udp => (flow.remote, flow.local),
        };
        let family = if flow.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let mut request = [0; REQUEST_LEN];
        request[0..4].copy_from_slice(&(REQUEST_LEN as u32).to_ne_bytes());
        request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        request[16] = family as u8;
        request[17] = flow.protocol.number();
        request[20..24].copy_from_slice(&ALL_STATES.to_ne_bytes());
        request[24..26].copy_from_slice(&source.port().to_be_bytes());
        request[26..28].copy_from_slice(&destination.port().to_be_bytes());
        put_address(&mut request[28..44], source.ip());
        put_address(&mut request[44..60], destination.ip());
        request[60..64].copy_from_slice(&self.interface.to_ne_bytes());
        request[64..72].copy_from_slice(&NO_COOKIE);
        request
    }

    /// Asks; the answers are to carry the number that this returns.
    pub(crate) fn send(&mut self, request: &[u8]) -> Result<u32, SockDiagError> {
        self.socket.send(request).map_err(SockDiagError::Exchange)?;
        Ok(self.sequence)
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Answers to earlier questions, which timed out, are passed over.
    fn exchange(&mut self, request: &[u8]) -> Result<Answer, SockDiagError> {
        self.socket.send(request).map_err(SockDiagError::Exchange)?;
        let deadline = Instant::now() + TIMEOUT;
        let mut buffer = [0; 4096];
        loop {
            let len = match (&self.socket).read(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(SockDiagError::Timeout);
                }
                Err(error) => return Err(SockDiagError::Exchange(error)),
            };
            if let Some(answer) = find_answer(&buffer[..len], self.sequence) {
                return answer;
            }
            if Instant::now() >= deadline {
                return Err(SockDiagError::Timeout);
            }
        }
    }
}

/// A flow as this host sees it, before any translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup {
    pub protocol: Protocol,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOwner {
    /// The user who made the socket.
    pub uid: u32,
    /// Names the socket among a process's descriptors; never 0.
    pub inode: u32,
    /// The cgroup in which the socket was made, where the kernel tells.
    pub cgroup_id: Option<u64>,
    /// The socket's mark (`SO_MARK`), which only privileged processes can set; 0 for none, and where
    /// this process may not see it.
    pub mark: u32,
    /// The kernel's TCP state number, for UDP as well (1 connected, 7 not).
    pub state: u8,
    /// The flow has no connection yet: this is who listens on its local port.
    pub listening: bool,
    /// What the socket is bound to; unspecified for all addresses.
    pub bound: IpAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum SockDiagError {
    #[error("can't open the kernel's socket diagnosis (NETLINK_SOCK_DIAG)")]
    Open(#[source] io::Error),
    #[error(
        "this kernel can't tell who owns a {0:?} socket: it needs CONFIG_INET_DIAG and \
         CONFIG_INET_UDP_DIAG (modules tcp_diag and udp_diag)"
    )]
    Unsupported(Protocol),
    #[error("asking for a socket's owner failed")]
    Exchange(#[source] io::Error),
    #[error("the kernel didn't tell a socket's owner within {} ms", TIMEOUT.as_millis())]
    Timeout,
}

enum Answer {
    Socket(Found),
    NotFound,
    Done,
}

struct Found {
    local_port: u16,
    remote_port: u16,
    owner: SocketOwner,
}

impl Found {
    /// `None` for a message too short.
    fn parse(message: &[u8]) -> Option<Self> {
        let fixed = message.first_chunk::<ANSWER_LEN>()?;
        let state = fixed[1];
        let owner = SocketOwner {
            uid: u32_at(fixed, 64)?,
            inode: u32_at(fixed, 68)?,
            cgroup_id: attribute(&message[ANSWER_LEN..], INET_DIAG_CGROUP_ID)
                .and_then(|value| Some(u64::from_ne_bytes(*value.first_chunk()?))),
            mark: attribute(&message[ANSWER_LEN..], INET_DIAG_MARK)
                .and_then(|value| u32_at(value, 0))
                .unwrap_or(0),
            state,
            listening: state == TCP_LISTEN,
            bound: address_at(fixed, 8, fixed[0])?,
        };
        let port = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
        Some(Self { local_port: port(4), remote_port: port(6), owner })
    }

    /// Whether this waits for flows on a port.
    fn listens_on(&self, protocol: Protocol, port: u16) -> bool {
        let waits = match protocol {
            Protocol::Tcp => self.owner.listening,
            Protocol::Udp => self.remote_port == 0,
        };
        waits && self.owner.inode != 0 && self.local_port == port
    }

    /// Whether this answers the question, rather than resembling it.
    fn belongs_to(&self, flow: &Lookup) -> bool {
        let connected = self.remote_port != 0;
        self.owner.inode != 0
            && self.local_port == flow.local.port()
            && (!connected || self.remote_port == flow.remote.port())
    }
}

/// The part of a datagram of netlink messages that answers question `sequence`.
fn find_answer(mut datagram: &[u8], sequence: u32) -> Option<Result<Answer, SockDiagError>> {
    const NOOP: u16 = libc::NLMSG_NOOP as u16;
    const ERROR: u16 = libc::NLMSG_ERROR as u16;
    const DONE: u16 = libc::NLMSG_DONE as u16;
    while let Some(header) = datagram.first_chunk::<HEADER_LEN>() {
        let len = usize::try_from(u32_at(header, 0)?).ok()?;
        let message = datagram.get(HEADER_LEN..len)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if u32_at(header, 8)? == sequence {
            match kind {
                SOCK_DIAG_BY_FAMILY => {
                    return Found::parse(message).map(|it| Ok(Answer::Socket(it)));
                }
                DONE => return Some(Ok(Answer::Done)),
                ERROR => return Some(refusal(message)),
                NOOP => {}
                _ => {}
            }
        }
        datagram = datagram.get(align(len)..)?;
    }
    None
}

fn refusal(message: &[u8]) -> Result<Answer, SockDiagError> {
    let code = message.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    match code.saturating_neg() {
        0 => Ok(Answer::Done),
        libc::ENOENT => Ok(Answer::NotFound),
        errno => Err(SockDiagError::Exchange(io::Error::from_raw_os_error(errno))),
    }
}

/// The value of the first attribute of a type.
pub(crate) fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const TYPE_MASK: u16 = 0x3fff;
    while let Some(header) = attributes.first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(4..len)?;
        if u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK == wanted {
            return Some(value);
        }
        attributes = attributes.get(align(len)..)?;
    }
    None
}

fn align(len: usize) -> usize {
    len.next_multiple_of(4)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|value| u32::from_ne_bytes(*value))
}

/// An address of 16 bytes, of which IPv4 uses the first four.
fn address_at(bytes: &[u8], at: usize, family: u8) -> Option<IpAddr> {
    let field = bytes.get(at..)?.first_chunk::<16>()?;
    if libc::c_int::from(family) == libc::AF_INET {
        let [a, b, c, d, ..] = *field;
        Some(Ipv4Addr::new(a, b, c, d).into())
    } else {
        Some(Ipv6Addr::from(*field).to_canonical())
    }
}

fn put_address(field: &mut [u8], address: IpAddr) {
    match address {
        IpAddr::V4(address) => field[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => field.copy_from_slice(&address.octets()),
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
