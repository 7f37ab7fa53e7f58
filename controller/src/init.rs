//! Makes a mesh.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use isthmus_controller_core::{MeshIdentity, State};
use isthmus_model::{Exposure, MeshPrefix, Name, TrustDomain};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::authority::{self, Authority, Credentials};
use crate::files;
use crate::history;
use crate::mesh_file::{self, MeshFile};
use crate::settings::OPERATOR_LIFETIME;
use crate::store::{Change, Redb, Store as _, changes_between};

const OPERATOR: &str = "operator";
/// All that a mesh consists of, but for `mesh.toml`.
const PARTS: [&str; 4] = [authority::KEY, authority::CERTIFICATE, Redb::FILE, OPERATOR];

/// Options of a new mesh.
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
/// `mesh.toml` is there from the beginning, but under another name until everything else is: whoever
/// is interrupted before leaves what the next `init` knows as unfinished, and begins anew.
///
/// # Errors
///
/// There is a mesh already, an address is wrong, or a file can't be written.
pub fn init(wanted: Init) -> Result<MeshIdentity> {
    make(wanted, &mut |_| Ok(()))
}

/// `step` is told before each change of the disk, and may end it there.
fn make(wanted: Init, step: &mut dyn FnMut(&str) -> Result<()>) -> Result<MeshIdentity> {
    let Init { state_dir, name, trust_domain, addresses } = wanted;
    if addresses.is_empty() {
        bail!("A controller needs an address that hosts can reach; give --address HOST:PORT");
    }
    addresses.iter().try_for_each(|address| mesh_file::check_address(address))?;
    let prefix = random_prefix()?;
    let identity = MeshIdentity { name, trust_domain, prefix, exposure: Exposure::Mesh };
    let mesh_file = MeshFile::new(&identity, addresses.clone());
    step("the state directory")?;
    files::private_folder(&state_dir)?;
    step("the unfinished mesh.toml")?;
    let mut unfinished = Unfinished::begin(&state_dir)?;
    step("what an earlier init left")?;
    unfinished.clear(&state_dir)?;
    step("the text of mesh.toml")?;
    unfinished.write(&mesh_file.to_text()?)?;
    step("the CA")?;
    let authority = Authority::create(&state_dir, &identity.trust_domain)?;
    step("the store")?;
    let empty = State::new(identity.clone());
    let mut contents = changes_between(None, &empty);
    contents.push(Change::Belongs(history::belongs(&identity, authority.hash())));
    Redb::create(&state_dir)?.commit(&contents)?;
    step("the operator")?;
    let admin = "admin".parse().context("Bad operator name")?;
    files::whole_folder(&state_dir.join(OPERATOR), |folder| {
        write_operator(&authority, folder, &admin, &addresses)?;
        step("the operator's place")
    })?;
    step("the place of mesh.toml")?;
    unfinished.finish(&state_dir)?;
    Ok(identity)
}

/// Writes credentials for an operator of an existing mesh.
pub(crate) fn operator(state_dir: &Path, folder: &Path, name: &Name) -> Result<()> {
    let mesh = MeshFile::read(state_dir)?;
    let authority = Authority::load(state_dir, &mesh.identity()?.trust_domain)?;
    if folder.exists() {
        bail!("{} exists already; name a folder that doesn't", folder.display());
    }
    files::whole_folder(folder, |folder| write_operator(&authority, folder, name, &mesh.addresses))
}

/// The `mesh.toml` of a mesh that isn't whole yet, under its other name. The lock on it tells an
/// `init` that runs from one that was interrupted.
struct Unfinished {
    path: PathBuf,
    file: File,
}

impl Unfinished {
    fn begin(state_dir: &Path) -> Result<Self> {
        let path = files::beside(&state_dir.join(mesh_file::NAME));
        refuse_to_overwrite(state_dir, path.exists())?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("Failed to write {}", path.display()))?;
        if file.try_lock().is_err() {
            bail!("Another init is making a mesh in {}; wait for it", state_dir.display());
        }
        // It may have ended between these looks.
        refuse_to_overwrite(state_dir, true)?;
        Ok(Self { path, file })
    }

    /// Nobody can have used what an interrupted `init` made: without mesh.toml, nothing runs.
    fn clear(&self, state_dir: &Path) -> Result<()> {
        let beside = files::beside(Path::new(OPERATOR));
        let beside = beside.to_str().into_iter();
        PARTS.into_iter().chain(beside).try_for_each(|part| files::remove(&state_dir.join(part)))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.write_all(text.as_bytes()))
            .and_then(|()| self.file.sync_all())
            .with_context(|| format!("Failed to write {}", self.path.display()))
    }

    fn finish(self, state_dir: &Path) -> Result<()> {
        files::rename(&self.path, &state_dir.join(mesh_file::NAME))
    }
}

fn refuse_to_overwrite(state_dir: &Path, unfinished: bool) -> Result<()> {
    let parts = if unfinished { &[][..] } else { &PARTS[..] };
    let mut parts = parts.iter().chain(&[mesh_file::NAME]);
    match parts.find(|part| state_dir.join(part).exists()) {
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
    let Credentials { issued, key } = authority.operator(name, OPERATOR_LIFETIME)?;
    let (ca, certificate, key_file) = ("ca.pem", "operator.pem", "operator.key");
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
    write("operator.toml", &toml::to_string(&file).context("Failed to write operator.toml")?)
}

fn pem(certificate: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn wanted(state_dir: &Path) -> Init {
        Init {
            state_dir: state_dir.to_owned(),
            name: "corp".parse().unwrap(),
            trust_domain: "corp.example".parse().unwrap(),
            addresses: vec!["192.0.2.1:7443".to_owned()],
        }
    }

    fn assert_whole(state_dir: &Path, identity: &MeshIdentity) {
        assert_eq!(MeshFile::read(state_dir).unwrap().identity().unwrap(), *identity);
        Authority::load(state_dir, &identity.trust_domain).unwrap();
        Redb::open(state_dir).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(state_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["ca.key", "ca.pem", "mesh.toml", "operator", "store.redb"]);
        // As `init` says.
        let key = std::fs::metadata(state_dir.join(authority::KEY)).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(state_dir.join(OPERATOR)).unwrap().count(), 4);
    }

    #[test]
    fn an_init_that_was_interrupted_anywhere_can_be_repeated() {
        for last in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let state = folder.path().join("state");
            let mut steps = 0;
            let done = make(wanted(&state), &mut |step| {
                steps += 1;
                if steps > last { bail!("interrupted before {step}") } else { Ok(()) }
            });
            if let Ok(identity) = done {
                assert_whole(&state, &identity);
                return;
            }
            assert!(MeshFile::read(&state).is_err(), "{last}: what isn't whole doesn't run");
            let identity = init(wanted(&state)).unwrap_or_else(|error| panic!("{last}: {error:#}"));
            assert_whole(&state, &identity);
        }
    }

    #[test]
    fn a_mesh_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        init(wanted(state)).unwrap();
        let key = std::fs::read(state.join(authority::KEY)).unwrap();
        assert!(init(wanted(state)).unwrap_err().to_string().contains("holds a mesh already"));
        // A mesh.toml that somebody lost makes it none that is unfinished.
        std::fs::remove_file(state.join(mesh_file::NAME)).unwrap();
        assert!(init(wanted(state)).unwrap_err().to_string().contains("holds a mesh already"));
        assert_eq!(std::fs::read(state.join(authority::KEY)).unwrap(), key);
    }

    #[test]
    fn an_init_that_runs_is_not_taken_for_an_interrupted_one() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().to_owned();
        let mut second = None;
        make(wanted(&state), &mut |step| {
            if step == "the store" {
                second = Some(init(wanted(&state)).unwrap_err().to_string());
            }
            Ok(())
        })
        .unwrap();
        assert!(second.unwrap().contains("Another init"));
    }
}
