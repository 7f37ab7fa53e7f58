//! An operator's credentials: `operator.toml` and the files that it names.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;
use tonic::transport::Identity;

use crate::errors::{Failure, unreadable};
use crate::output;

/// The machine's own, and on the controller's machine those that `isthmus-controller init` made.
const SYSTEM_WIDE: [&str; 2] =
    ["/etc/isthmus/operator/operator.toml", "/var/lib/isthmus/controller/operator/operator.toml"];

/// `operator.toml`, as `isthmus-controller init` writes it. Paths are relative to it.
#[derive(Debug, Deserialize)]
struct OperatorFile {
    controllers: Vec<String>,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    server_name: String,
}

/// What the controller is asked with. No `Debug`: it holds a key.
pub(crate) struct Credentials {
    /// Where the controller listens, as `host:port`.
    pub(crate) controllers: Vec<String>,
    /// PEM.
    pub(crate) ca: String,
    /// The operator's certificate and key.
    pub(crate) identity: Identity,
    /// The name that its certificate must have.
    pub(crate) server_name: String,
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
        let identity = Identity::from_pem(read(&file.certificate)?, read(&file.key)?);
        if let Some(warning) = exposed(&key_path) {
            output::warn(&warning);
        }
        Ok(Self {
            controllers: file.controllers,
            ca: read(&file.ca)?,
            identity,
            server_name: file.server_name,
        })
    }
}

/// Where credentials are, if nobody says otherwise.
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
