//! Receive steering: the choice of a socket in a SO_REUSEPORT group.

use std::io;
use std::os::fd::AsRawFd;

use socket2::Socket;

/// Which socket of a group a datagram is handed to: one whose first byte is `kind`, to the socket
/// that its second byte counts; any other, to the first.
#[derive(Debug, Clone, Copy)]
pub struct Steering {
    pub kind: u8,
}

impl Steering {
    /// Steers the group that `socket` is in.
    pub(crate) fn attach(self, socket: &Socket, count: u8) -> io::Result<()> {
        attach_reuse_port_filter(socket, &self.program(count))
    }

    /// Classic BPF; the datagram's bytes begin at 0.
    fn program(self, count: u8) -> [libc::sock_filter; 6] {
        let op = |code, k, if_true, if_false| {
            let code = u16::try_from(code).unwrap_or_default();
            libc::sock_filter { code, jt: if_true, jf: if_false, k }
        };
        let load_byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
        [
            op(load_byte, 0, 0, 0),
            op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, u32::from(self.kind), 0, 2),
            op(load_byte, 1, 0, 0),
            op(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, u32::from(count), 0, 1),
            op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            op(libc::BPF_RET | RETURN_A, 0, 0, 0),
        ]
    }
}

/// `BPF_A` of `linux/filter.h`, which libc lacks.
const RETURN_A: u32 = 0x10;

fn attach_reuse_port_filter(socket: &Socket, program: &[libc::sock_filter]) -> io::Result<()> {
    const LEN: libc::socklen_t = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `program` and the instructions that it points to live across the call; the kernel
    // only reads them, `LEN` and `len` of each. The descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            LEN,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    use super::*;
    use crate::poll::{Events, Interest, Poller};
    use crate::udp::{RecvBatch, SendOutcome, Transmit, UdpSocket};

    #[test]
    fn a_group_hands_each_datagram_to_the_socket_that_it_names() {
        let steering = Steering { kind: 0x40 };
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let group = UdpSocket::bind_group((ip, 0).into(), 3, steering).unwrap();
            assert_eq!(
                UdpSocket::bind(group[0].local_addr()).unwrap_err().kind(),
                io::ErrorKind::AddrInUse
            );
            let sender = UdpSocket::bind((ip, 0).into()).unwrap();
            let cases: [(&[u8], usize); 6] = [
                (&[0x40, 0, 9], 0),
                (&[0x40, 1, 9], 1),
                (&[0x40, 2, 9], 2),
                (&[0x40, 3, 9], 0),
                (&[0x04, 2, 9], 0),
                (&[0x40], 0),
            ];
            for (datagram, socket) in cases {
                let transmit = Transmit::datagram(group[0].local_addr(), datagram);
                assert_eq!(sender.send(&transmit), SendOutcome::Sent);
                assert_eq!(receive(&group[socket]), datagram, "{ip}");
            }
        }
    }

    fn receive(socket: &UdpSocket) -> Vec<u8> {
        let poller = Poller::new().unwrap();
        poller.add(socket, 0, Interest::READ).unwrap();
        let mut events = Events::with_capacity(1);
        poller.wait(&mut events, Some(Duration::from_secs(5))).unwrap();
        assert!(!events.is_empty(), "nothing arrived");
        let mut batch = RecvBatch::new();
        assert_eq!(socket.recv(&mut batch).unwrap(), 1);
        batch.messages().next().unwrap().contents.to_vec()
    }
}
