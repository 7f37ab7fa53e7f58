//! State directory: the identity of this host, and the last good snapshot.
//!
//! ```text
//!  DIR/            0700
//!    lock          held while an agent uses the directory
//!    wireguard.key the tunnel's private key, base64
//!    wireguard.next the key that takes its place, while both are good
//!    tls.pem       TLS key, certificate and CA, in one file because they change together
//!    member.toml   which host of which mesh; written last when joining, removed first when leaving
//!    acme/         accounts and certificates of gateways that get them by ACME
//!    snapshot      hash and resources of the last snapshot that this host worked by
//!    joining.toml  the keys of a join that has had no answer yet: the same join gets the same answer
//! ```
//!
//! A file is replaced whole or not at all: written beside its place, flushed, renamed, and the
//! directory flushed. Half-written files of an agent that died are ignored and overwritten.
//!
//! A directory that can only be read is enough to work by what is there. What couldn't be kept is kept
//! once it can be: see [`StateDir::tend`].

mod codec;
mod files;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use isthmus_proto::v1;
use parking_lot::{Mutex, MutexGuard};
use zeroize::{Zeroize as _, Zeroizing};

use self::codec::{
    decode_joining, decode_key, decode_snapshot, decode_tls, encode_key, encode_snapshot,
    encode_tls,
};
use self::files::{make_private, open_lock};
use crate::identity::{Identity, Member, TlsIdentity, TunnelKey};
use crate::join::Keys;

pub(crate) use self::files::{make_directory, replace};

const LOCK: &str = "lock";
const PROBE: &str = "probe";
const TUNNEL_KEY: &str = "wireguard.key";
/// While it is there, the mesh may know this host by either key.
const NEXT_KEY: &str = "wireguard.next";
const TLS: &str = "tls.pem";
const MEMBER: &str = "member.toml";
const JOINING: &str = "joining.toml";
const ACME: &str = "acme";
const SNAPSHOT: &str = "snapshot";
const DAMAGED: &str = "snapshot.damaged";
const SNAPSHOT_MAGIC: &[u8] = b"isthmus snapshot 1\n";

/// The agent's directory; nobody else uses it while this value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Held by whoever changes what belongs together.
    changing: Mutex<()>,
    _lock: File,
    /// The snapshot that couldn't be kept.
    unkept: Mutex<Option<v1::SnapshotResources>>,
    is_writable: AtomicBool,
}

/// Fault of the directory.
#[derive(Debug, Default)]
pub struct Ailments {
    /// Nothing can be written, for this reason.
    pub unwritable: Option<anyhow::Error>,
    /// This revision isn't kept, for this reason.
    pub unkept: Option<(u64, anyhow::Error)>,
}

/// The keys of a join, and what it was about.
#[derive(serde::Serialize, serde::Deserialize)]
struct Joining {
    token: String,
    host: String,
    /// Both base64.
    tunnel_key: String,
    tls_key: String,
}

impl Drop for Joining {
    fn drop(&mut self) {
        self.tunnel_key.zeroize();
        self.tls_key.zeroize();
    }
}

/// What of a state directory others than its owner may read, and mustn't.
#[must_use]
pub fn exposed(folder: &Path) -> Vec<PathBuf> {
    let is_exposed = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0)
    };
    let keys = [TUNNEL_KEY, NEXT_KEY, TLS, JOINING].map(|name| folder.join(name));
    [folder.to_owned()].into_iter().chain(keys).filter(is_exposed).collect()
}

/// A snapshot as it was kept.
#[derive(Debug)]
pub struct KeptSnapshot {
    pub resources: v1::SnapshotResources,
    /// When the controller last confirmed it.
    pub confirmed: SystemTime,
}

impl StateDir {
    /// Opens the directory, making it where it is missing.
    ///
    /// # Errors
    /// When another agent uses it, or it is neither there nor can be made.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        make_directory(path)
            .with_context(|| format!("Failed to make the state directory {shown}"))?;
        make_private(path)
            .with_context(|| format!("Failed to make the state directory {shown} private"))?;
        let lock = open_lock(path).with_context(|| format!("Failed to open {shown}/lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                changing: Mutex::default(),
                _lock: lock,
                unkept: Mutex::default(),
                is_writable: AtomicBool::new(false),
            }),
            Err(fs::TryLockError::WouldBlock) => {
                bail!("Another agent uses the state directory {shown}; stop it first")
            }
            Err(fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("Failed to lock {shown}"))
            }
        }
    }

    /// Looks whether the directory can be written, and keeps what couldn't be kept before. To be done from
    /// time to time; it costs nothing while all is well.
    pub fn tend(&self) -> Ailments {
        let mut unkept = self.unkept();
        if self.is_writable.load(Ordering::Relaxed) && unkept.is_none() {
            return Ailments::default();
        }
        let probe = replace(&self.path.join(PROBE), b"")
            .and_then(|()| fs::remove_file(self.path.join(PROBE)));
        self.is_writable.store(probe.is_ok(), Ordering::Relaxed);
        let unwritable = probe.err().map(anyhow::Error::from);
        let Some(snapshot) = unkept.take() else { return Ailments { unwritable, unkept: None } };
        let kept = self.write(SNAPSHOT, &encode_snapshot(&snapshot));
        let error = kept.err().map(|error| (snapshot.revision, error));
        if error.is_some() {
            *unkept = Some(snapshot);
        }
        Ailments { unwritable, unkept: error }
    }

    /// Itself, and those of its files with private keys, as far as others than their owner may read them.
    #[must_use]
    pub fn exposed(&self) -> Vec<PathBuf> {
        exposed(&self.path)
    }

    fn unkept(&self) -> MutexGuard<'_, Option<v1::SnapshotResources>> {
        self.unkept.lock()
    }

    /// Identity of this host; `None` before it has joined.
    ///
    /// # Errors
    /// When the files are there but damaged: only a person can decide to join anew.
    pub fn identity(&self) -> anyhow::Result<Option<Identity>> {
        let Some(text) = self.read(MEMBER)? else { return Ok(None) };
        let identity = self.identity_of(&text);
        identity.map(Some).with_context(|| {
            format!(
                "This host's identity in {} is damaged; remove the directory and join again",
                self.path.display()
            )
        })
    }

    fn identity_of(&self, member: &[u8]) -> anyhow::Result<Identity> {
        let member = std::str::from_utf8(member).map_err(anyhow::Error::from);
        let member = member.and_then(Member::from_toml).context(MEMBER)?;
        let key = self.read(TUNNEL_KEY)?.ok_or_else(|| anyhow!("{TUNNEL_KEY} is missing"))?;
        let tunnel = decode_key(&key).context(TUNNEL_KEY)?;
        let next = self.read(NEXT_KEY)?.map(|key| decode_key(&key)).transpose();
        let next = next.context(NEXT_KEY)?;
        let tls = self.read(TLS)?.ok_or_else(|| anyhow!("{TLS} is missing"))?;
        let obtained = fs::metadata(self.path.join(TLS))?.modified()?;
        let tls = decode_tls(&tls, obtained).context(TLS)?;
        tls.check(&member).context(TLS)?;
        Ok(Identity { member, tunnel, next, tls })
    }

    /// Keeps a new identity.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write_identity(&self, identity: &Identity) -> anyhow::Result<()> {
        let _alone = self.changing();
        *self.unkept() = None;
        // Of an earlier membership, under another number. A host that joins anew under its own goes on by
        // what it has.
        let same = |text: Zeroizing<Vec<u8>>| {
            let member = std::str::from_utf8(&text).ok().and_then(|it| Member::from_toml(it).ok());
            member.is_some_and(|member| member.is_same_as(&identity.member))
        };
        if !self.read(MEMBER)?.is_some_and(same) {
            self.remove(SNAPSHOT)?;
        }
        self.remove(NEXT_KEY)?;
        self.write(TUNNEL_KEY, encode_key(&identity.tunnel).as_bytes())?;
        self.write_tls(&identity.tls)?;
        self.write(MEMBER, identity.member.to_toml()?.as_bytes())
    }

    /// The tunnel key that takes the present one's place: it is on disk before anybody sees its public half, and
    /// stays the same until it has.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn next_key(&self) -> anyhow::Result<TunnelKey> {
        let _alone = self.changing();
        if let Some(text) = self.read(NEXT_KEY)? {
            return decode_key(&text).context(NEXT_KEY);
        }
        let key = TunnelKey::generate()?;
        self.write(NEXT_KEY, encode_key(&key).as_bytes())?;
        Ok(key)
    }

    /// The next key takes the present one's place, of which nothing is left.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn change_key(&self) -> anyhow::Result<()> {
        let _alone = self.changing();
        fs::rename(self.path.join(NEXT_KEY), self.path.join(TUNNEL_KEY))
            .with_context(|| format!("Failed to replace {TUNNEL_KEY}"))?;
        self.flush_directory()
    }

    /// Keeps where this member's controllers and its mesh are, as long as it is the member.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write_member(&self, member: &Member) -> anyhow::Result<()> {
        let _alone = self.changing();
        let Some(text) = self.read(MEMBER)? else { return Ok(()) };
        let kept = std::str::from_utf8(&text).ok().and_then(|text| Member::from_toml(text).ok());
        match kept {
            Some(kept) if kept.is_same_as(member) => {
                self.write(MEMBER, member.to_toml()?.as_bytes())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The keys for joining with this token under this name: those of an attempt before whose answer
    /// never came, or new ones. They are on disk before anybody sees their public halves.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn join_keys(&self, token: &str, host: &str) -> anyhow::Result<Keys> {
        if let Some(keys) = self.read(JOINING)?.and_then(|text| decode_joining(&text, token, host))
        {
            tracing::info!(host, "joining with the keys of the attempt before");
            return Ok(keys);
        }
        let keys = Keys::generate()?;
        let joining = Joining {
            token: token.to_owned(),
            host: host.to_owned(),
            tunnel_key: STANDARD.encode(**keys.tunnel.bytes()),
            tls_key: STANDARD.encode(&*keys.tls.to_der()),
        };
        let text = Zeroizing::new(toml::to_string(&joining).context("Failed to write down keys")?);
        self.write(JOINING, text.as_bytes())?;
        Ok(keys)
    }

    /// The join has come to its end.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget_join_keys(&self) -> anyhow::Result<()> {
        self.remove(JOINING)
    }

    /// Keeps a renewed certificate and its key.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write_tls(&self, tls: &TlsIdentity) -> anyhow::Result<()> {
        self.write(TLS, encode_tls(tls).as_bytes())
    }

    /// The last snapshot. A damaged one is moved aside: the controller has another.
    ///
    /// # Errors
    /// When the disk refuses to read it.
    pub fn snapshot(&self) -> anyhow::Result<Option<KeptSnapshot>> {
        let Some(bytes) = self.read(SNAPSHOT)? else { return Ok(None) };
        match decode_snapshot(&bytes) {
            Ok(resources) => {
                let confirmed = fs::metadata(self.path.join(SNAPSHOT))?.modified()?;
                Ok(Some(KeptSnapshot { resources, confirmed }))
            }
            Err(error) => {
                self.set_aside_snapshot(&error);
                Ok(None)
            }
        }
    }

    /// The snapshot in `path`, if a member keeps one there. Reads only, whoever uses the directory.
    ///
    /// # Errors
    /// When the disk refuses, or the snapshot is damaged.
    pub fn peek(path: &Path) -> anyhow::Result<Option<v1::SnapshotResources>> {
        if !path.join(MEMBER).try_exists()? {
            return Ok(None);
        }
        match fs::read(path.join(SNAPSHOT)) {
            Ok(bytes) => decode_snapshot(&bytes).map(Some).context("The kept snapshot is damaged"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("Failed to read the kept snapshot"),
        }
    }

    /// The membership of this host, by what [`Self::peek`] reads.
    ///
    /// # Errors
    /// When the disk refuses, or what is there is damaged.
    pub fn peek_member(path: &Path) -> anyhow::Result<Option<Member>> {
        match fs::read_to_string(path.join(MEMBER)) {
            Ok(text) => Member::from_toml(&text).map(Some).context(MEMBER),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("Failed to read {MEMBER}")),
        }
    }

    /// Moves away a snapshot that can't be used, so that a person can look at it.
    pub fn set_aside_snapshot(&self, why: &anyhow::Error) {
        let aside = self.path.join(DAMAGED);
        tracing::warn!(
            file = %aside.display(),
            "the snapshot on disk is damaged ({why:#}); moving it aside, waiting for the controller"
        );
        if let Err(error) = fs::rename(self.path.join(SNAPSHOT), &aside) {
            tracing::warn!(%error, "couldn't move it aside");
        }
    }

    /// Keeps a snapshot.
    ///
    /// # Errors
    /// When the disk refuses. Then [`Self::tend`] tries again.
    pub fn write_snapshot(&self, resources: &v1::SnapshotResources) -> anyhow::Result<()> {
        // The lock keeps an older one from coming after this.
        let mut unkept = self.unkept();
        let written = self.write(SNAPSHOT, &encode_snapshot(resources));
        *unkept = written.is_err().then(|| resources.clone());
        written
    }

    /// Notes that the controller confirmed the snapshot at `at`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn confirm_snapshot(&self, at: SystemTime) -> io::Result<()> {
        match OpenOptions::new().write(true).open(self.path.join(SNAPSHOT)) {
            Ok(file) => file.set_modified(at),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Forgets the mesh, unless this host has joined anew meanwhile.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget(&self, former: &Identity) -> anyhow::Result<()> {
        let _alone = self.changing();
        let mut keys = Vec::new();
        for name in [TUNNEL_KEY, NEXT_KEY] {
            keys.extend(self.read(name)?.and_then(|text| decode_key(&text).ok()));
        }
        let is_former = |key: &TunnelKey| **key.bytes() == **former.tunnel.bytes();
        if !keys.is_empty() && !keys.iter().any(is_former) {
            return Ok(());
        }
        *self.unkept() = None;
        for name in [MEMBER, SNAPSHOT, DAMAGED, TLS, TUNNEL_KEY, NEXT_KEY] {
            self.remove(name)?;
        }
        match fs::remove_dir_all(self.path.join(ACME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("Failed to remove {ACME}"));
            }
            Ok(()) | Err(_) => {}
        }
        self.flush_directory()
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("Failed to remove {name}"))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn read(&self, name: &str) -> anyhow::Result<Option<Zeroizing<Vec<u8>>>> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("Failed to read {}", path.display())),
        }
    }

    fn write(&self, name: &str, contents: &[u8]) -> anyhow::Result<()> {
        let path = self.path.join(name);
        let written = replace(&path, contents);
        if written.is_err() {
            self.is_writable.store(false, Ordering::Relaxed);
        }
        written.with_context(|| format!("Failed to write {}", path.display()))
    }

    fn flush_directory(&self) -> anyhow::Result<()> {
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .with_context(|| format!("Failed to flush {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests;
