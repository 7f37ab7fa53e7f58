//! An operator's credentials: `operator.toml` and the files that it names.
//!
//! Certificates live for hours. One that is past half of its life, or has expired, is renewed when the
//! credentials are used, with the same key: a copy of the folder elsewhere stays as good as this one.

use std::env;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use rcgen::{CertificateParams, KeyPair};
use serde::{Deserialize, Serialize};
use tonic::transport::Identity;
use x509_parser::pem::parse_x509_pem;
use zeroize::Zeroizing;

use crate::errors::{Failure, unreadable};
use crate::output;

/// The machine's own, and on the controller's machine those that `isthmus-controller init` made.
const SYSTEM_WIDE: [&str; 2] =
    ["/etc/isthmus/operator/operator.toml", "/var/lib/isthmus/controller/operator/operator.toml"];

/// `operator.toml`, as `isthmus-controller init` writes it. Paths are relative to it.
#[derive(Debug, Deserialize, Serialize)]
struct OperatorFile {
    controllers: Vec<String>,
    server_name: String,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

/// Credentials for the controller. No `Debug`: it holds a key.
pub(crate) struct Credentials {
    /// Addresses of the controller, as `host:port`.
    pub(crate) controllers: Vec<String>,
    /// PEM.
    pub(crate) ca: String,
    /// The name that the controller's certificate must have.
    pub(crate) server_name: String,
    /// PEM.
    certificate: String,
    /// PEM.
    key: Zeroizing<String>,
    /// Path of the certificate.
    certificate_path: PathBuf,
}

/// Age of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// In the first half of its life, or nothing is known of it.
    Young,
    /// In the second.
    Old,
    /// It was good until then, in seconds since the epoch.
    Expired(i64),
}

/// A key that was made here.
pub(crate) struct NewKey(KeyPair);

/// A folder that is to hold credentials, and doesn't take its place before it does.
pub(crate) struct NewFolder {
    out: PathBuf,
    beside: PathBuf,
}

impl Credentials {
    /// Reads `operator.toml` and what it names.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(|error| unreadable("the operator's credentials", path, &error))?;
        let file: OperatorFile = toml::from_str(&text).map_err(|error| {
            Failure::Refused(format!(
                "Failed to read {}: {}; `isthmus-controller operator` writes a good one",
                path.display(),
                error.message()
            ))
        })?;
        if file.controllers.is_empty() {
            let problem = format!("{} names no controller", path.display());
            return Err(Failure::Refused(format!("{problem}; add it to `controllers`")).into());
        }
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        let read = |name: &Path| {
            let path = folder.join(name);
            fs::read_to_string(&path)
                .map_err(|error| unreadable("the operator's file", &path, &error))
        };
        let key_path = folder.join(&file.key);
        let (certificate, key) = (read(&file.certificate)?, Zeroizing::new(read(&file.key)?));
        if let Some(warning) = exposed(&key_path) {
            output::warn(&warning);
        }
        Ok(Self {
            controllers: file.controllers,
            ca: read(&file.ca)?,
            server_name: file.server_name,
            certificate,
            key,
            certificate_path: folder.join(&file.certificate),
        })
    }

    /// The operator's certificate and key.
    pub(crate) fn identity(&self) -> Identity {
        Identity::from_pem(&self.certificate, &*self.key)
    }

    /// How old the certificate is at a time, in seconds since the epoch. One that can't be read is the
    /// controller's to refuse.
    pub(crate) fn age(&self, now: i64) -> Age {
        let Ok((_, pem)) = parse_x509_pem(self.certificate.as_bytes()) else { return Age::Young };
        let Ok(certificate) = pem.parse_x509() else { return Age::Young };
        let validity = certificate.validity();
        let (begins, ends) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        if now >= ends {
            Age::Expired(ends)
        } else if now >= begins + (ends - begins) / 2 {
            Age::Old
        } else {
            Age::Young
        }
    }

    /// Asks for a certificate for the same key, in DER.
    pub(crate) fn request(&self) -> Result<Vec<u8>> {
        NewKey(KeyPair::from_pem(&self.key).context("Failed to read the operator's key")?).request()
    }

    /// Keeps a new certificate, in DER. It takes the place of the old one at once or not at all.
    ///
    /// # Errors
    ///
    /// It can't be written; it is good for this run all the same.
    pub(crate) fn renew(&mut self, leaf: &[u8]) -> Result<()> {
        self.certificate = pem(leaf);
        let path = &self.certificate_path;
        let mut beside = path.clone().into_os_string();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        private(&beside, &self.certificate)
            .and_then(|()| {
                // Root may renew what is somebody else's.
                let old = fs::metadata(path)?;
                chown(&beside, Some(old.uid()), Some(old.gid()))?;
                fs::rename(&beside, path)
            })
            .inspect_err(|_| drop(fs::remove_file(&beside)))
            .with_context(|| format!("Failed to write {}", path.display()))
    }
}

impl NewKey {
    pub(crate) fn generate() -> Result<Self> {
        Ok(Self(KeyPair::generate().context("Failed to make the operator's key")?))
    }

    /// PKCS #10, DER. What the certificate says is the controller's to decide.
    pub(crate) fn request(&self) -> Result<Vec<u8>> {
        let request = CertificateParams::default().serialize_request(&self.0);
        Ok(request.context("Failed to make a certificate request")?.der().to_vec())
    }
}

/// Path for an operator's credentials.
pub(crate) fn new_folder(out: &Path) -> Result<NewFolder> {
    let mut beside = out.components().collect::<PathBuf>().into_os_string();
    beside.push(".new");
    let (out, beside) = (out.to_owned(), PathBuf::from(beside));
    if out.exists() {
        let problem = format!("{} exists already; name a folder that doesn't", out.display());
        return Err(Failure::Refused(problem).into());
    }
    drop(fs::remove_dir_all(&beside));
    DirBuilder::new()
        .mode(0o700)
        .create(&beside)
        .with_context(|| format!("Failed to make the folder {}", beside.display()))?;
    Ok(NewFolder { out, beside })
}

impl NewFolder {
    /// Nobody got credentials.
    pub(crate) fn discard(self) {
        drop(fs::remove_dir_all(&self.beside));
    }

    /// Writes credentials for the controllers that somebody else's are for; returns their `operator.toml`.
    pub(crate) fn fill(self, of: &Credentials, key: &NewKey, leaf: &[u8]) -> Result<PathBuf> {
        let file = OperatorFile {
            controllers: of.controllers.clone(),
            server_name: of.server_name.clone(),
            ca: "ca.pem".into(),
            certificate: "operator.pem".into(),
            key: "operator.key".into(),
        };
        let toml = toml::to_string(&file).context("Failed to write operator.toml")?;
        let (certificate, key) = (pem(leaf), Zeroizing::new(key.0.serialize_pem()));
        let files = [
            ("ca.pem", &*of.ca),
            ("operator.pem", &*certificate),
            ("operator.key", &**key),
            ("operator.toml", &*toml),
        ];
        let fill = || {
            files.iter().try_for_each(|(name, text)| private(&self.beside.join(name), text))?;
            fs::rename(&self.beside, &self.out)
        };
        fill().with_context(|| format!("Failed to write {}", self.out.display()))?;
        Ok(self.out.join("operator.toml"))
    }
}

/// Writes a file that only its owner may read.
fn private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn pem(der: &[u8]) -> String {
    const LINE: usize = 64;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines = text.as_bytes().chunks(LINE).filter_map(|line| std::str::from_utf8(line).ok());
    let lines: Vec<&str> = lines.collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Default path of credentials.
pub(crate) fn default_path() -> Option<PathBuf> {
    let home = env::var_os("HOME").filter(|home| !home.is_empty());
    let own = home.map(|home| Path::new(&home).join(".config/isthmus/operator.toml"));
    own.into_iter().chain(SYSTEM_WIDE.map(PathBuf::from)).find(|path| path.is_file())
}

/// A warning where others may read a key.
fn exposed(key: &Path) -> Option<String> {
    let mode = fs::metadata(key).ok()?.permissions().mode();
    (mode & 0o077 != 0).then(|| {
        let key = key.display();
        format!("others may read the operator's key {key}: run `chmod 600 {key}`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(operator: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("ca.pem", "CA"), ("o.pem", "CERT"), ("o.key", "KEY")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        fs::write(folder.path().join("operator.toml"), operator).unwrap();
        folder
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let folder = folder(
            "controllers = [\"c:7443\"]\nca = \"ca.pem\"\ncertificate = \"o.pem\"\nkey = \"o.key\"\nserver_name = \"controller.corp.example\"",
        );
        let credentials = Credentials::read(&folder.path().join("operator.toml")).unwrap();
        assert_eq!(credentials.ca, "CA");
        assert_eq!(credentials.controllers, ["c:7443"]);
    }

    /// Credentials whose certificate is good from 1,000 to 2,000.
    fn dated() -> (tempfile::TempDir, Credentials) {
        let folder = folder(
            "controllers = [\"c:7443\"]\nca = \"ca.pem\"\ncertificate = \"o.pem\"\nkey = \"o.key\"\nserver_name = \"controller.corp.example\"",
        );
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let time = |seconds| std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        (params.not_before, params.not_after) = (time(1_000).into(), time(2_000).into());
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("o.pem"), pem(certificate.der())).unwrap();
        fs::write(folder.path().join("o.key"), key.serialize_pem()).unwrap();
        let credentials = Credentials::read(&folder.path().join("operator.toml")).unwrap();
        (folder, credentials)
    }

    #[test]
    fn a_certificate_ages() {
        let (_folder, credentials) = dated();
        let ages = [1_000, 1_499, 1_500, 1_999, 2_000].map(|now| credentials.age(now));
        let expected = [Age::Young, Age::Young, Age::Old, Age::Old, Age::Expired(2_000)];
        assert_eq!(ages, expected);
    }

    #[test]
    fn a_new_certificate_takes_the_old_ones_place() {
        let (folder, mut credentials) = dated();
        let request = credentials.request().unwrap();
        assert!(!request.is_empty());
        credentials.renew(b"something new").unwrap();
        let written = fs::read_to_string(folder.path().join("o.pem")).unwrap();
        assert_eq!(written, pem(b"something new"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "nothing is left beside it");
        // Where it can't be written it is good for this run.
        credentials.certificate_path = "/nonexistent/o.pem".into();
        assert!(credentials.renew(b"newer").is_err());
        assert_eq!(credentials.certificate, pem(b"newer"));
    }

    #[test]
    fn new_credentials_are_there_whole_and_for_their_owner_only() {
        let (place, of) = dated();
        let out = place.path().join("bob/");
        let key = NewKey::generate().unwrap();
        let file = new_folder(&out).unwrap().fill(&of, &key, b"leaf").unwrap();
        let new = Credentials::read(&file).unwrap();
        assert_eq!((&new.controllers, &new.server_name), (&of.controllers, &of.server_name));
        assert_eq!(new.certificate, pem(b"leaf"));
        assert_eq!(exposed(&out.join("operator.key")), None);
        assert!(new_folder(&out).is_err(), "nothing is overwritten");
        let other = place.path().join("eve");
        new_folder(&other).unwrap().discard();
        assert!(!other.exists() && !place.path().join("eve.new").exists());
    }

    #[test]
    fn a_bad_file_is_named() {
        let folder = folder("controllers = 7");
        let path = folder.path().join("operator.toml");
        let error = format!("{:#}", Credentials::read(&path).err().unwrap());
        assert!(error.contains("operator.toml"), "{error}");
    }

    #[test]
    fn a_key_that_others_may_read_is_warned_about() {
        let folder = folder("");
        let key = folder.path().join("o.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(exposed(&key).unwrap().contains("chmod 600"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(exposed(&key), None);
    }
}
