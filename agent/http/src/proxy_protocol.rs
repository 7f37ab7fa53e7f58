//! PROXY protocol header, which names the caller to an application before the first byte.
//!
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::net::{IpAddr, SocketAddr};

/// As text, or as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// The first of those types that are for applications of one's own: here the caller's SPIFFE ID.
const IDENTITY: u8 = 0xe0;

/// The header of a connection from a caller to a workload.
pub fn header(
    version: Version,
    caller: SocketAddr,
    workload: SocketAddr,
    identity: Option<&str>,
) -> Vec<u8> {
    match version {
        Version::V1 => {
            let family = if caller.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (caller.ip(), workload.ip());
            let ports = format!("{} {}", caller.port(), workload.port());
            format!("PROXY {family} {from} {to} {ports}\r\n").into_bytes()
        }
        Version::V2 => {
            let family = if caller.is_ipv4() { TCP_OVER_IPV4 } else { TCP_OVER_IPV6 };
            let mut body = [octets(caller.ip()), octets(workload.ip())].concat();
            body.extend(caller.port().to_be_bytes());
            body.extend(workload.port().to_be_bytes());
            if let Some(identity) = identity {
                body.push(IDENTITY);
                body.extend(length(identity.as_bytes()));
                body.extend(identity.as_bytes());
            }
            let head = [SIGNATURE, &[VERSION_2_PROXY, family]].concat();
            [&head[..], &length(&body), &body].concat()
        }
    }
}

/// Identities and addresses are far shorter than lengths can say.
fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_written_as_the_protocol_has_it() {
        let caller = "100.64.0.2:40000".parse().unwrap();
        let workload = "100.64.0.18:25".parse().unwrap();
        assert_eq!(
            header(Version::V1, caller, workload, Some("spiffe://t/a")),
            b"PROXY TCP4 100.64.0.2 100.64.0.18 40000 25\r\n"
        );
        assert_eq!(
            header(Version::V2, caller, workload, Some("spiffe://t/a")),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1b\x64\x40\0\x02\x64\x40\0\x12\x9c\x40\0\x19\xe0\0\x0cspiffe://t/a"
        );
        let (caller, workload) = ("[fd00::2]:1".parse().unwrap(), "[fd00::3]:2".parse().unwrap());
        assert_eq!(
            header(Version::V1, caller, workload, None),
            b"PROXY TCP6 fd00::2 fd00::3 1 2\r\n"
        );
        let v2 = header(Version::V2, caller, workload, None);
        assert_eq!((v2[13], v2.len()), (TCP_OVER_IPV6, 16 + 36));
    }
}
