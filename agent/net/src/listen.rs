//! Listeners on overlay addresses that the host may not have yet.
//!
//! DNS and the proxy start before the controller has told the host its addresses, and addresses
//! come and go while they run; `IP_FREEBIND` lets them bind regardless.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

const BACKLOG: i32 = 1024;

/// A non-blocking listener on `address`, whether or not the host has it.
///
/// # Errors
/// `AddrInUse` when something listens there already.
pub fn bind_freebind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bindable(address, Type::STREAM, Protocol::TCP)?;
    // A restarted agent mustn't wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Likewise, and it answers from whichever address it was asked at, the host's or not: from those
/// that only packets of one device lead here with (`AGENT_TABLE`).
///
/// # Errors
/// `AddrInUse` when something listens there already; `PermissionDenied` without `NET_ADMIN`.
pub fn bind_transparent_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bindable(address, Type::STREAM, Protocol::TCP)?;
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Has a listener take no more connections, and say nothing to who asks: as if the host weren't
/// there. Whoever asks then tries again, and finds the next listener. Those who asked before are
/// still to be accepted, also if they are about to finish their handshakes: they were answered, and
/// may have sent something already.
///
/// # Errors
/// As the kernel says.
pub fn hush(listener: &TcpListener) -> io::Result<()> {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    let flags = SockFilter::new((libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16, 0, 0, FLAGS);
    let begins = SockFilter::new((libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16, 0, 1, SYN);
    let take = |bytes| SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, bytes);
    SockRef::from(listener).attach_filter(&[flags, begins, take(0), take(u32::MAX)])
}

/// Notices whether an opening packet (SYN) of a chosen sequence number reaches a listener, without
/// anybody hearing of it: the listener drops it, and counts that.
#[derive(Debug)]
pub struct SynTrap<'a> {
    listener: &'a TcpListener,
    dropped_before: u32,
}

impl<'a> SynTrap<'a> {
    /// Whoever connects meanwhile is served as ever, but for one in 4 billion, which tries again.
    ///
    /// # Errors
    /// As the kernel says; it counts since Linux 4.12.
    pub fn set(listener: &'a TcpListener, sequence: u32) -> io::Result<Self> {
        const SEQUENCE: u32 = 4;
        let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        let take = |bytes| SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, bytes);
        let dropped_before = dropped(listener)?;
        SockRef::from(listener).attach_filter(&[
            SockFilter::new(load, 0, 0, SEQUENCE),
            SockFilter::new(equal, 0, 1, sequence),
            take(0),
            take(u32::MAX),
        ])?;
        Ok(Self { listener, dropped_before })
    }

    /// Whether something was caught since.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn has_caught(&self) -> io::Result<bool> {
        Ok(dropped(self.listener)? != self.dropped_before)
    }
}

impl Drop for SynTrap<'_> {
    fn drop(&mut self) {
        if let Err(error) = SockRef::from(self.listener).detach_filter() {
            tracing::debug!(%error, "couldn't take a listener's filter away");
        }
    }
}

/// Packets that a socket has dropped so far.
fn dropped(socket: &TcpListener) -> io::Result<u32> {
    const FIELDS: usize = 9;
    /// Not in libc.
    const SO_MEMINFO: libc::c_int = 55;
    let mut info = [0_u32; FIELDS];
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes up to `length` bytes to `info`, which has as many, and the length that
    // it wrote to `length`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let drops = usize::try_from(libc::SK_MEMINFO_DROPS).ok();
    let drops = drops.filter(|at| (at + 1) * size_of::<u32>() <= length as usize);
    drops.and_then(|at| info.get(at).copied()).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// A non-blocking TCP socket that isn't connected yet and will speak from `source`; from whichever
/// address the kernel chooses, if that is unspecified. The mark shows in the kernel's socket diagnosis;
/// to set one takes `NET_ADMIN`.
///
/// # Errors
/// `AddrNotAvailable` when `source` isn't the host's; `PermissionDenied` without `NET_ADMIN`.
pub fn bind_marked_tcp(source: IpAddr, mark: u32) -> io::Result<TcpStream> {
    let socket =
        Socket::new(Domain::for_address((source, 0).into()), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_mark(mark)?;
    socket.set_nonblocking(true)?;
    if !source.is_unspecified() {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(socket.into())
}

/// Likewise, but it speaks from an address that is somebody else's: what is sent there must be led back to
/// the host.
///
/// # Errors
/// `PermissionDenied` without `NET_ADMIN`.
pub fn bind_marked_tcp_as(source: IpAddr, mark: u32) -> io::Result<TcpStream> {
    let address = SocketAddr::new(source, 0);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_mark(mark)?;
    match source {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    // A port is chosen with the connection: it needn't be free for all destinations.
    set_bind_address_no_port(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn set_bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // INVARIANT: an int is this small.
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes from `on`, which has as many.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A non-blocking UDP socket on `address`, whether or not the host has it.
///
/// # Errors
/// `AddrInUse` when something is bound there already.
pub fn bind_freebind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = bindable(address, Type::DGRAM, Protocol::UDP)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn bindable(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream;

    use super::*;
    use crate::testing::{LOOPBACK, block_on, eventually, in_netns, netlink};

    #[test]
    fn a_listener_waits_for_its_address_and_then_serves_on_it() {
        in_netns(|| {
            for ip in ["100.64.9.1".parse().unwrap(), "fd12:3456:789a::1".parse().unwrap()] {
                let listener = bind_freebind_tcp((ip, 5353).into()).unwrap();
                let datagrams = bind_freebind_udp((ip, 5353).into()).unwrap();
                assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);

                block_on(async { netlink().add_address(LOOPBACK, ip).await.unwrap() });
                let client = eventually(|| TcpStream::connect((ip, 5353)));
                let accepted = listener.accept().unwrap().1;
                assert_eq!(accepted, client.local_addr().unwrap());
                let sender = UdpSocket::bind((ip, 0)).unwrap();
                sender.send_to(b"query", (ip, 5353)).unwrap();
                assert_eq!(datagrams.recv(&mut [0; 16]).unwrap(), 5);
            }
        });
    }

    #[test]
    fn a_hushed_listener_refuses_nobody_and_takes_nobody() {
        let listener = bind_freebind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let _before = TcpStream::connect(address).unwrap();
        hush(&listener).unwrap();
        let short = std::time::Duration::from_millis(200);
        let error = TcpStream::connect_timeout(&address, short).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(listener.accept().is_ok(), "who came before is still there");
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_taken_port_is_refused() {
        in_netns(|| {
            let address = "100.64.9.1:53".parse().unwrap();
            let _first = bind_freebind_udp(address).unwrap();
            assert_eq!(bind_freebind_udp(address).unwrap_err().kind(), ErrorKind::AddrInUse);
            let _first = bind_freebind_tcp(address).unwrap();
            assert_eq!(bind_freebind_tcp(address).unwrap_err().kind(), ErrorKind::AddrInUse);
        });
    }
}
