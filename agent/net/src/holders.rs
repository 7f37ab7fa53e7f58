//! Port holders: the processes that have a port which the agent needs, for messages to people, so it may take its time.

use std::fmt;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::process;
use crate::sock_diag::{
    ANSWER_LEN, HEADER_LEN, Lookup, Protocol, SockDiagError, SocketDiag, u32_at,
};

/// Holders that are looked for. Anybody may bind one port at thousands of addresses.
const MOST: usize = 16;
const BUDGET: Duration = Duration::from_millis(500);

/// A socket on a port, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub address: SocketAddr,
    pub user: u32,
    /// One of the processes that have it open, and its program; none where that isn't ours to see, or
    /// nobody has.
    pub process: Option<(u32, Option<PathBuf>)>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((process, Some(program))) => {
                write!(f, "{} (process {process}, ", program.display())?
            }
            Some((process, None)) => write!(f, "process {process} (")?,
            None => f.write_str("a process (")?,
        }
        write!(f, "user {}) on {}", self.user, self.address)
    }
}

/// The sockets that are bound to a port of this network namespace.
///
/// # Errors
/// When the kernel can't be asked.
pub fn of_port(protocol: Protocol, port: u16) -> Result<Vec<Holder>, SockDiagError> {
    let deadline = Instant::now() + BUDGET;
    let mut diag = SocketDiag::open()?;
    let mut holders = Vec::new();
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        for (address, user, inode) in diag.on_port(protocol, SocketAddr::new(any, port))? {
            let left = deadline.saturating_duration_since(Instant::now());
            let found = process::holders(inode, None, left).into_iter().next();
            let process = found.map(|it| (it.pid, it.exe));
            holders.push(Holder { address, user, process });
        }
    }
    Ok(holders)
}

impl SocketDiag {
    /// Address, user and inode of the sockets on the port of `any`, of its family.
    fn on_port(
        &mut self,
        protocol: Protocol,
        any: SocketAddr,
    ) -> Result<Vec<(SocketAddr, u32, u32)>, SockDiagError> {
        let mut request = self.request(&Lookup { protocol, local: any, remote: any });
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        request[6..8].copy_from_slice(&flags.to_ne_bytes());
        request[24..26].copy_from_slice(&any.port().to_be_bytes());
        request[26..28].copy_from_slice(&[0; 2]);
        let sequence = self.send(&request)?;
        let mut buffer = vec![0; 1 << 16];
        let mut found = Vec::new();
        loop {
            let len = self.socket().read(&mut buffer).map_err(SockDiagError::Exchange)?;
            let mut rest = &buffer[..len];
            while let Some(header) = rest.first_chunk::<HEADER_LEN>() {
                let len = u32_at(header, 0).and_then(|len| usize::try_from(len).ok());
                let Some(message) = len.and_then(|len| rest.get(HEADER_LEN..len)) else { break };
                let kind = i32::from(u16::from_ne_bytes([header[4], header[5]]));
                if u32_at(header, 8) == Some(sequence)
                    && (kind == libc::NLMSG_DONE || kind == libc::NLMSG_ERROR)
                {
                    return Ok(found);
                }
                found.extend(parse(message).filter(|it| it.0.port() == any.port()));
                found.truncate(MOST);
                rest = rest.get((HEADER_LEN + message.len()).next_multiple_of(4)..).unwrap_or(&[]);
            }
        }
    }
}

/// See `struct inet_diag_msg`. What no process has can't be in the way for long.
fn parse(message: &[u8]) -> Option<(SocketAddr, u32, u32)> {
    let fixed = message.first_chunk::<ANSWER_LEN>()?;
    let port = u16::from_be_bytes([fixed[4], fixed[5]]);
    let (ipv4, _) = fixed[8..].split_first_chunk::<4>()?;
    let (ipv6, _) = fixed[8..].split_first_chunk::<16>()?;
    let address = if i32::from(fixed[0]) == libc::AF_INET {
        IpAddr::from(*ipv4)
    } else {
        IpAddr::from(*ipv6)
    };
    let inode = u32_at(fixed, 68).filter(|inode| *inode != 0)?;
    Some((SocketAddr::new(address, port), u32_at(fixed, 64)?, inode))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::testing::in_netns;

    #[test]
    fn whoever_holds_a_port_is_named() {
        in_netns(|| {
            let us = std::process::id();
            for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
                let listener = TcpListener::bind((ip, 15_001)).unwrap();
                let datagrams = UdpSocket::bind((ip, 51_820)).unwrap();
                let _other = UdpSocket::bind((ip, 51_821)).unwrap();
                for (protocol, address) in [
                    (Protocol::Tcp, listener.local_addr().unwrap()),
                    (Protocol::Udp, datagrams.local_addr().unwrap()),
                ] {
                    let holders = of_port(protocol, address.port()).unwrap();
                    let [holder] = &holders[..] else { panic!("{holders:?}") };
                    assert_eq!((holder.address, holder.user), (address, 0));
                    assert_eq!(holder.process.as_ref().map(|it| it.0), Some(us));
                    let said = holder.to_string();
                    assert!(
                        said.contains(&format!("(process {us}, user 0) on {address}")),
                        "{said}"
                    );
                }
            }
            assert_eq!(of_port(Protocol::Udp, 4).unwrap(), []);
        });
    }
}
