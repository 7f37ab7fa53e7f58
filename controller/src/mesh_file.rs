//! `mesh.toml` in the state directory: what `init` fixed for good.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use isthmus_controller_core::MeshIdentity;
use isthmus_model::{Exposure, MeshPrefix};
use serde::{Deserialize, Serialize};

use crate::files;

pub(crate) const NAME: &str = "mesh.toml";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MeshFile {
    name: String,
    trust_domain: String,
    /// The mesh's /48.
    prefix: String,
    /// Whether ports are closed around the mesh where the topology says nothing. A mesh that is older
    /// than this key counts who comes around, and goes on working as it does.
    #[serde(default)]
    closes_ports: bool,
    /// Where agents and operators reach the controller: `host:port`.
    pub(crate) addresses: Vec<String>,
}

impl MeshFile {
    pub(crate) fn new(identity: &MeshIdentity, addresses: Vec<String>) -> Self {
        Self {
            name: identity.name.to_string(),
            trust_domain: identity.trust_domain.to_string(),
            prefix: format!("{}/48", identity.prefix.network()),
            closes_ports: identity.exposure == Exposure::Mesh,
            addresses,
        }
    }

    /// As it stands in the file.
    pub(crate) fn to_text(&self) -> Result<String> {
        let text = toml::to_string(self).context("Failed to write mesh.toml")?;
        Ok(format!(
            "# Written by `isthmus-controller init`. Only `addresses` may be changed.\n{text}"
        ))
    }

    pub(crate) fn read(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join(NAME);
        if !path.exists() {
            bail!(
                "There is no mesh in {}; make one with `isthmus-controller init --state-dir {}`, or name another directory with --state-dir",
                state_dir.display(),
                state_dir.display()
            );
        }
        let file: Self = toml::from_str(&files::read(&path)?)
            .with_context(|| format!("Failed to read {}", path.display()))?;
        file.addresses.iter().try_for_each(|address| check_address(address))?;
        Ok(file)
    }

    pub(crate) fn identity(&self) -> Result<MeshIdentity> {
        Ok(MeshIdentity {
            name: self.name.parse().context("Bad `name` in mesh.toml")?,
            trust_domain: self.trust_domain.parse().context("Bad `trust_domain` in mesh.toml")?,
            prefix: parse_prefix(&self.prefix).context("Bad `prefix` in mesh.toml")?,
            exposure: if self.closes_ports { Exposure::Mesh } else { Exposure::Count },
        })
    }
}

/// Checks `host:port`, and says what is wrong with it.
pub(crate) fn check_address(address: &str) -> Result<()> {
    host_and_port(address).map(|_| ())
}

/// The host without brackets, and the port.
pub(crate) fn host_and_port(address: &str) -> Result<(&str, u16)> {
    let help = "write HOST:PORT, for instance 192.0.2.1:7443 or [2001:db8::1]:7443";
    let Some((host, port)) = address.rsplit_once(':') else {
        bail!("The address {address:?} has no port; {help}");
    };
    let port = port.parse().ok().filter(|port| *port != 0);
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let good_host = !bare.is_empty()
        && bare.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
        && bare.contains(':') == host.starts_with('[');
    match port {
        Some(port) if good_host => Ok((bare, port)),
        Some(_) | None => bail!("{address:?} is not an address; {help}"),
    }
}

fn parse_prefix(text: &str) -> Result<MeshPrefix> {
    let network = text.strip_suffix("/48").context("a mesh prefix is a /48")?;
    let octets = network.parse::<std::net::Ipv6Addr>()?.octets();
    let [a, b, c, d, e, f, ..] = octets;
    Ok(MeshPrefix::new([a, b, c, d, e, f])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        assert_eq!(host_and_port("[2001:db8::1]:7443").unwrap(), ("2001:db8::1", 7443));
        assert_eq!(host_and_port("ctl.example:1").unwrap(), ("ctl.example", 1));
        for bad in ["ctl", "ctl:", "ctl:0", ":1", "2001:db8::1:7443", "a b:1", "ctl:70000"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mesh_file_is_read_as_it_was_written() {
        let identity = MeshIdentity {
            name: "corp".parse().unwrap(),
            trust_domain: "corp.example".parse().unwrap(),
            prefix: MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).unwrap(),
            exposure: Exposure::Mesh,
        };
        let folder = tempfile::tempdir().unwrap();
        let file = MeshFile::new(&identity, vec!["192.0.2.1:7443".to_owned()]);
        std::fs::write(folder.path().join(NAME), file.to_text().unwrap()).unwrap();
        assert_eq!(MeshFile::read(folder.path()).unwrap().identity().unwrap(), identity);
    }

    #[test]
    fn a_mesh_that_is_older_than_exposure_counts() {
        let folder = tempfile::tempdir().unwrap();
        let text = "name = \"corp\"\ntrust_domain = \"corp.example\"\n\
                    prefix = \"fd01:203:405::/48\"\naddresses = [\"192.0.2.1:7443\"]\n";
        std::fs::write(folder.path().join(NAME), text).unwrap();
        let identity = MeshFile::read(folder.path()).unwrap().identity().unwrap();
        assert_eq!(identity.exposure, Exposure::Count);
    }
}
