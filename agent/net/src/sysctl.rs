//! Per-interface kernel settings under `/proc/sys/net`.
//!
//! The files that a thread sees there are those of its own network namespace.

use std::io;
use std::path::PathBuf;

use crate::tun::valid_interface_name;

/// One of the two trees of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// Writes `value` to `net.<family>.conf.<interface>.<key>`; `interface` may be `all`.
///
/// # Errors
/// Says which setting it was, and what to do where that is known.
pub fn set(family: Family, interface: &str, key: &str, value: &str) -> Result<(), SysctlError> {
    let path = path(family, interface, key)?;
    std::fs::write(&path, value).map_err(|source| SysctlError::at(path, source))
}

/// Reads `net.<family>.conf.<interface>.<key>`.
///
/// # Errors
/// As for [`set`].
pub fn read(family: Family, interface: &str, key: &str) -> Result<String, SysctlError> {
    let path = path(family, interface, key)?;
    match std::fs::read_to_string(&path) {
        Ok(value) => Ok(value.trim_end().to_owned()),
        Err(source) => Err(SysctlError::at(path, source)),
    }
}

/// Has the kernel give `port` to nobody who asks for any; who asks for that one still gets it.
///
/// # Errors
/// As for [`set`].
pub fn reserve_port(port: u16) -> Result<(), SysctlError> {
    let path = PathBuf::from("/proc/sys/net/ipv4/ip_local_reserved_ports");
    let at = |source| SysctlError::at(path.clone(), source);
    let reserved = std::fs::read_to_string(&path).map_err(at)?;
    let reserved = reserved.trim_end();
    if is_listed(reserved, port) {
        return Ok(());
    }
    let separator = if reserved.is_empty() { "" } else { "," };
    std::fs::write(&path, format!("{reserved}{separator}{port}")).map_err(at)
}

/// Whether a list such as "8080,9000-9010" has the port.
fn is_listed(list: &str, port: u16) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&port),
            (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
        }
    })
}

#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    #[error("'{interface}' and '{key}' don't make a setting's name")]
    BadName { interface: String, key: String },
    #[error("{0} doesn't exist: the interface is gone, or the kernel lacks the setting")]
    Missing(PathBuf),
    #[error(
        "{0} can't be written: needs CAP_NET_ADMIN and a writable /proc/sys (in a container, set \
         it from outside with '--sysctl'; in a unit, ProtectKernelTunables=no)"
    )]
    NotPermitted(PathBuf),
    #[error("{path} refuses the value")]
    Os { path: PathBuf, source: io::Error },
}

impl SysctlError {
    fn at(path: PathBuf, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Self::Missing(path),
            Some(libc::EPERM | libc::EACCES | libc::EROFS) => Self::NotPermitted(path),
            _ => Self::Os { path, source },
        }
    }
}

/// Neither part may lead out of its directory.
fn path(family: Family, interface: &str, key: &str) -> Result<PathBuf, SysctlError> {
    let key_ok =
        !key.is_empty() && key.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if !key_ok || !valid_interface_name(interface) {
        let (interface, key) = (interface.to_owned(), key.to_owned());
        return Err(SysctlError::BadName { interface, key });
    }
    let root = match family {
        Family::Ipv4 => "/proc/sys/net/ipv4/conf",
        Family::Ipv6 => "/proc/sys/net/ipv6/conf",
    };
    Ok([root, interface, key].iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_netns;
    use crate::tun::Tun;

    #[test]
    fn a_setting_holds_in_this_namespace_only() {
        in_netns(|| {
            let _tun = Tun::create("isth-s0", 1400).unwrap();
            for (family, key) in [(Family::Ipv4, "rp_filter"), (Family::Ipv6, "disable_ipv6")] {
                set(family, "isth-s0", key, "1").unwrap();
                assert_eq!(read(family, "isth-s0", key).unwrap(), "1");
                set(family, "isth-s0", key, "0").unwrap();
                assert_eq!(read(family, "isth-s0", key).unwrap(), "0");
            }
        });
        let error = read(Family::Ipv4, "isth-s0", "rp_filter").unwrap_err();
        assert!(matches!(error, SysctlError::Missing(_)), "{error:?}");
    }

    #[test]
    fn a_name_cannot_lead_elsewhere() {
        for (interface, key) in [("..", "ip_forward"), ("lo/..", "rp_filter"), ("lo", "../x")] {
            let error = set(Family::Ipv4, interface, key, "1").unwrap_err();
            assert!(matches!(error, SysctlError::BadName { .. }), "{interface} {key}: {error:?}");
        }
    }

    #[test]
    fn a_refused_value_names_the_file() {
        in_netns(|| {
            let error = set(Family::Ipv4, "lo", "rp_filter", "many").unwrap_err();
            assert!(error.to_string().contains("conf/lo/rp_filter"), "{error}");
        });
    }
}
