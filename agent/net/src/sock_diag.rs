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
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::testing::{Shell, in_netns};
    use crate::tun::Tun;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    #[test]
    fn who_listens_is_found_by_any_address_that_leads_there() {
        in_netns(|| {
            let inode = |fd: &dyn AsRawFd| {
                std::fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().ino()
            };
            let mut diag = SocketDiag::open().unwrap();
            let everywhere = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
            let port = everywhere.local_addr().unwrap().port();
            for ip in [V4, V6] {
                let found = diag.listener(Protocol::Tcp, (ip, port).into()).unwrap().unwrap();
                assert_eq!(u64::from(found.inode), inode(&everywhere));
                assert!(found.bound.is_unspecified(), "{found:?}");
            }
            // Whoever is connected isn't who listens.
            let _client = TcpStream::connect((V4, port)).unwrap();
            let (_accepted, client) = everywhere.accept().unwrap();
            let connected = (V4, client.port()).into();
            assert_eq!(diag.listener(Protocol::Tcp, connected).unwrap(), None);

            let here = UdpSocket::bind((V4, 0)).unwrap();
            let port = here.local_addr().unwrap().port();
            let found = diag.listener(Protocol::Udp, (V4, port).into()).unwrap().unwrap();
            assert_eq!((u64::from(found.inode), found.bound), (inode(&here), V4));
            let elsewhere = ("127.0.0.2".parse::<IpAddr>().unwrap(), port).into();
            assert_eq!(diag.listener(Protocol::Udp, elsewhere).unwrap(), None);
            here.connect((V4, 9)).unwrap();
            assert_eq!(diag.listener(Protocol::Udp, (V4, port).into()).unwrap(), None);
        });
    }

    #[test]
    fn a_mark_is_seen_while_connecting_and_after() {
        for ip in [V4, V6] {
            in_netns(move || {
                let listener = TcpListener::bind((ip, 0)).unwrap();
                let client = crate::listen::bind_marked_tcp(ip, 0x15_75).unwrap();
                let client = Socket::from(client);
                client.set_nonblocking(false).unwrap();
                client.connect(&listener.local_addr().unwrap().into()).unwrap();
                let (server, _) = listener.accept().unwrap();
                let mark =
                    |socket: socket2::SockRef<'_>| find(Protocol::Tcp, &socket).unwrap().mark;
                assert_eq!(mark(socket2::SockRef::from(&client)), 0x15_75);
                assert_eq!(mark(socket2::SockRef::from(&server)), 0);
            });
        }
    }

    #[test]
    fn a_tcp_connection_is_found_from_either_end() {
        for ip in [V4, V6] {
            in_netns(move || {
                let listener = TcpListener::bind((ip, 0)).unwrap();
                let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (server, _) = listener.accept().unwrap();
                for stream in [&client, &server] {
                    let owner = find(Protocol::Tcp, &socket2::SockRef::from(stream)).unwrap();
                    assert_eq!(owner.inode, inode(stream));
                    assert_eq!((owner.uid, owner.state, owner.listening), (0, 1, false));
                    assert!(owner.cgroup_id.is_some());
                }
            });
        }
    }

    #[test]
    fn an_ipv4_flow_of_an_ipv6_socket_is_found() {
        in_netns(|| {
            let listener = TcpListener::bind((V4, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port));
            let client = TcpStream::connect(mapped).unwrap();
            assert!(client.local_addr().unwrap().is_ipv6());
            let local = SocketAddr::new(V4, client.local_addr().unwrap().port());
            for (local, remote) in
                [(local, (V4, port).into()), (client.local_addr().unwrap(), mapped)]
            {
                let owner = lookup(Protocol::Tcp, local, remote).unwrap();
                assert_eq!((owner.inode, owner.listening), (inode(&client), false));
            }

            let dual = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
            let port = dual.local_addr().unwrap().port();
            for connect in [false, true] {
                if connect {
                    dual.connect(mapped).unwrap();
                }
                let owner = lookup(Protocol::Udp, (V4, port).into(), (V4, mapped.port()).into());
                assert_eq!(owner.unwrap().inode, inode(&dual), "connected: {connect}");
            }
        });
    }

    #[test]
    fn udp_sockets_are_found_connected_or_not() {
        for ip in [V4, V6] {
            in_netns(move || {
                let any: IpAddr = if ip.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    Ipv6Addr::UNSPECIFIED.into()
                };
                let open = UdpSocket::bind((any, 0)).unwrap();
                let local = SocketAddr::new(ip, open.local_addr().unwrap().port());
                let owner = lookup(Protocol::Udp, local, (ip, 9).into()).unwrap();
                assert_eq!((owner.inode, owner.state, owner.listening), (inode(&open), 7, false));

                let connected = UdpSocket::bind((ip, 0)).unwrap();
                connected.connect((ip, 9)).unwrap();
                let owner = find(Protocol::Udp, &socket2::SockRef::from(&connected)).unwrap();
                assert_eq!((owner.inode, owner.state), (inode(&connected), 1));
                let local = connected.local_addr().unwrap();
                assert_eq!(lookup(Protocol::Udp, local, (ip, 10).into()), None);
            });
        }
    }

    #[test]
    fn a_flow_without_a_connection_is_answered_by_its_listener() {
        in_netns(|| {
            let listener = TcpListener::bind((V4, 0)).unwrap();
            let local = listener.local_addr().unwrap();
            let owner = lookup(Protocol::Tcp, local, (V4, 40_000).into()).unwrap();
            assert_eq!((owner.inode, owner.listening), (inode(&listener), true));
        });
    }

    #[test]
    fn an_unknown_flow_has_no_owner() {
        in_netns(|| {
            for ip in [V4, V6] {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    assert_eq!(lookup(protocol, (ip, 1234).into(), (ip, 80).into()), None);
                }
            }
            assert_eq!(lookup(Protocol::Tcp, (V4, 1234).into(), (V6, 80).into()), None);
        });
    }

    #[test]
    fn a_connection_that_nobody_holds_any_more_is_not_roots() {
        in_netns(|| {
            let listener = TcpListener::bind((V4, 0)).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let remote = listener.local_addr().unwrap();
            drop(client);
            assert_eq!(lookup(Protocol::Tcp, peer, remote), None, "FIN_WAIT has no owner");
            drop(server);
            assert_eq!(lookup(Protocol::Tcp, peer, remote), None, "TIME_WAIT has no owner");
        });
    }

    #[test]
    fn a_socket_bound_to_the_device_is_found_by_its_device() {
        in_netns(|| {
            let tun = Tun::create("isth-d0", 1400).unwrap();
            let socket = UdpSocket::bind((V4, 0)).unwrap();
            socket2::SockRef::from(&socket).bind_device(Some(b"isth-d0")).unwrap();
            let flow = Lookup {
                protocol: Protocol::Udp,
                local: socket.local_addr().unwrap(),
                remote: (V4, 9).into(),
            };
            let mut diag = SocketDiag::open().unwrap();
            assert_eq!(diag.lookup(&flow).unwrap(), None);
            diag.set_interface(tun.index());
            assert_eq!(diag.lookup(&flow).unwrap().unwrap().inode, inode(&socket));
        });
    }

    #[test]
    fn the_owner_is_the_user_who_made_the_socket() {
        use std::os::unix::process::CommandExt;
        in_netns(|| {
            let listener = TcpListener::bind((V4, 0)).unwrap();
            let remote = listener.local_addr().unwrap();
            let mut nobody = Shell::spawn(|command| {
                command.uid(65_534).gid(65_534);
            });
            nobody.run(&format!("exec 3<>/dev/tcp/127.0.0.1/{}", remote.port()));
            let (_stream, local) = listener.accept().unwrap();
            let owner = lookup(Protocol::Tcp, local, remote).unwrap();
            assert_eq!((owner.uid, owner.listening), (65_534, false));
        });
    }

    #[test]
    fn an_answer_to_an_earlier_question_is_passed_over() {
        in_netns(|| {
            let listener = TcpListener::bind((V4, 0)).unwrap();
            let local = listener.local_addr().unwrap();
            let mut diag = SocketDiag::open().unwrap();
            let known = Lookup { protocol: Protocol::Tcp, local, remote: (V4, 9).into() };
            let unread = diag.request(&known);
            diag.socket.send(&unread).unwrap();
            let unknown = Lookup { local: (V4, 1).into(), ..known };
            assert_eq!(diag.lookup(&unknown).unwrap(), None);
            assert_eq!(diag.lookup(&known).unwrap().unwrap().inode, inode(&listener));
        });
    }

    #[test]
    fn silence_ends_in_a_timeout() {
        let mut diag = SocketDiag::open().unwrap();
        // The length of a message that isn't one: the kernel passes over it without an answer.
        let error = diag.exchange(&4_u32.to_ne_bytes()).err().unwrap();
        assert!(matches!(error, SockDiagError::Timeout), "{error:?}");
    }

    #[test]
    fn damaged_answers_are_no_answers() {
        let message = [0_u8; 64];
        assert!(Found::parse(&message).is_none());
        assert!(attribute(&[3, 0, 21, 0, 1, 2], INET_DIAG_CGROUP_ID).is_none());
        assert!(attribute(&[200, 0, 21, 0], INET_DIAG_CGROUP_ID).is_none());
        for len in [0_u32, 4, 15, 17, u32::MAX] {
            let mut datagram = [0; 20];
            datagram[..4].copy_from_slice(&len.to_ne_bytes());
            datagram[8..12].copy_from_slice(&1_u32.to_ne_bytes());
            assert!(find_answer(&datagram, 1).is_none(), "length {len}");
        }
    }

    fn lookup(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> Option<SocketOwner> {
        SocketDiag::open().unwrap().lookup(&Lookup { protocol, local, remote }).unwrap()
    }

    fn find(protocol: Protocol, socket: &Socket) -> Option<SocketOwner> {
        let address = |end: io::Result<socket2::SockAddr>| end.ok().and_then(|it| it.as_socket());
        lookup(protocol, address(socket.local_addr())?, address(socket.peer_addr())?)
    }

    fn inode(socket: &impl AsRawFd) -> u32 {
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        u32::try_from(std::fs::metadata(path).unwrap().ino()).unwrap()
    }
}
