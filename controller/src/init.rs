//! Makes a mesh.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use isthmus_controller_core::{MeshIdentity, State};
use isthmus_model::{Exposure, MeshPrefix, Name, TrustDomain};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::authority::{self, Authority, Credentials};
use crate::files;
use crate::mesh_file::{self, MeshFile};
use crate::store::{Redb, Store as _, changes_between};

/// What a new mesh is to be.
#[derive(Clone, Debug)]
pub struct Init {
    /// Where to put it.
    pub state_dir: PathBuf,
    /// Its name.
    pub name: Name,
    /// The root of its identities.
    pub trust_domain: TrustDomain,
    /// Where the controller will be reached: `host:port`.
    pub addresses: Vec<String>,
}

/// Makes a mesh: CA, prefix, empty store, and credentials for its first operator.
///
/// # Errors
///
/// There is one already, an address is wrong, or a file can't be written.
pub fn init(wanted: Init) -> Result<MeshIdentity> {
    let Init { state_dir, name, trust_domain, addresses } = wanted;
    if addresses.is_empty() {
        bail!("A controller needs an address that hosts can reach; give --address HOST:PORT");
    }
    addresses.iter().try_for_each(|address| mesh_file::check_address(address))?;
    refuse_to_overwrite(&state_dir)?;
    files::private_folder(&state_dir)?;
    let prefix = random_prefix()?;
    let identity = MeshIdentity { name, trust_domain, prefix, exposure: Exposure::Mesh };
    let authority = Authority::create(&state_dir, &identity.trust_domain)?;
    let empty = State::new(identity.clone());
    Redb::create(&state_dir)?.commit(&changes_between(None, &empty))?;
    write_operator(
        &authority,
        &state_dir.join("operator"),
        &"admin".parse().context("Bad operator name")?,
        &addresses,
    )?;
    // Last: `run` takes a directory with this file for a whole mesh.
    MeshFile::new(&identity, addresses).write(&state_dir)?;
    Ok(identity)
}

/// Writes credentials for an operator of an existing mesh.
pub(crate) fn operator(state_dir: &Path, folder: &Path, name: &Name) -> Result<()> {
    let mesh = MeshFile::read(state_dir)?;
    let authority = Authority::load(state_dir, &mesh.identity()?.trust_domain)?;
    if folder.exists() {
        bail!("{} exists already; name a folder that doesn't", folder.display());
    }
    write_operator(&authority, folder, name, &mesh.addresses)
}

fn refuse_to_overwrite(state_dir: &Path) -> Result<()> {
    let parts = [mesh_file::NAME, authority::KEY, authority::CERTIFICATE, Redb::FILE, "operator"];
    match parts.iter().find(|part| state_dir.join(part).exists()) {
        Some(part) => bail!(
            "{} holds a mesh already (there is a {part}); nothing was changed. Choose another --state-dir, or remove the old mesh yourself if you are sure that no host needs it",
            state_dir.display()
        ),
        None => Ok(()),
    }
}

/// A unique local prefix (RFC 4193): forty random bits.
fn random_prefix() -> Result<MeshPrefix> {
    let mut bytes = [0xfd; 6];
    getrandom::fill(&mut bytes[1..]).map_err(|error| anyhow!("No randomness: {error}"))?;
    Ok(MeshPrefix::new(bytes)?)
}

/// `operator.toml`; paths are relative to it.
#[derive(Serialize)]
struct OperatorFile<'a> {
    controllers: &'a [String],
    server_name: String,
    ca: &'static str,
    certificate: &'static str,
    key: &'static str,
}

fn write_operator(
    authority: &Authority,
    folder: &Path,
    name: &Name,
    controllers: &[String],
) -> Result<()> {
    let Credentials { issued, key } = authority.operator(name)?;
    let (ca, certificate, key_file) = ("ca.pem", "operator.pem", "operator.key");
    files::private_folder(folder)?;
    let write = |name: &str, text: &str| files::private_file(&folder.join(name), text.as_bytes());
    write(ca, &pem(authority.certificate()))?;
    let leaf = issued.chain.first().context("A certificate was signed")?;
    write(certificate, &pem(leaf))?;
    write(key_file, &Zeroizing::new(key.serialize_pem()))?;
    let file = OperatorFile {
        controllers,
        server_name: Authority::server_name(authority.trust_domain()),
        ca,
        certificate,
        key: key_file,
    };
    write("operator.toml", &toml::to_string(&file).context("Failed to write operator.toml")?)?;
    fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("Failed to write {}", folder.display()))
}

fn pem(certificate: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
