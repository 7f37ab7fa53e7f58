//! The controller's settings.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use isthmus_model::topology::{setting_at, setting_error};
use serde::Deserialize;

use crate::{files, time};

pub(crate) const DEFAULT_FILE: &str = "/etc/isthmus/controller.toml";
pub(crate) const DEFAULT_STATE: &str = "/var/lib/isthmus/controller";
pub(crate) const DEFAULT_PORT: u16 = 7443;
const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3_600);
/// A working day; `agentctl` renews at half of it, and also later.
pub(crate) const OPERATOR_LIFETIME: Duration = Duration::from_secs(8 * 3_600);
const MIN_LIFETIME: Duration = Duration::from_secs(2);

/// How to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where `init` put the mesh.
    pub state_dir: PathBuf,
    /// What to listen on.
    pub listen: SocketAddr,
    /// How long hosts' certificates are good for.
    pub certificate_lifetime: Duration,
    /// How long operators' certificates are good for.
    pub operator_lifetime: Duration,
    /// Which events to log: a level, or levels by crate and module (`tracing_subscriber`'s `Targets`).
    pub log: String,
    /// How to write them.
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: an object per line.
    Json,
}

/// The settings file; every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    certificate_lifetime: Option<String>,
    operator_lifetime: Option<String>,
    log: Option<String>,
    log_format: Option<LogFormat>,
}

impl Settings {
    /// Settings for a state directory, with the defaults for everything else.
    #[must_use]
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT)),
            certificate_lifetime: DEFAULT_LIFETIME,
            operator_lifetime: OPERATOR_LIFETIME,
            log: "info".to_owned(),
            log_format: LogFormat::default(),
        }
    }

    /// Reads a settings file; without a name, the default one if it exists.
    ///
    /// # Errors
    ///
    /// It can't be read, or says what no setting is.
    pub fn read(path: Option<&Path>) -> Result<Self> {
        let default = Path::new(DEFAULT_FILE);
        let path = path.or_else(|| default.exists().then_some(default));
        let (text, path) = match path {
            Some(path) => (files::read(path)?, path),
            None => (String::new(), default),
        };
        let file = parse(path, &text)?;
        let mut settings = Self::new(file.state_dir.unwrap_or_else(|| DEFAULT_STATE.into()));
        settings.listen = file.listen.unwrap_or(settings.listen);
        settings.log = file.log.unwrap_or(settings.log);
        settings.log_format = file.log_format.unwrap_or_default();
        if let Some(value) = file.certificate_lifetime {
            settings.certificate_lifetime =
                lifetime((path, &text), "certificate_lifetime", &value)?;
        }
        if let Some(value) = file.operator_lifetime {
            settings.operator_lifetime = lifetime((path, &text), "operator_lifetime", &value)?;
        }
        Ok(settings)
    }
}

fn parse(path: &Path, text: &str) -> Result<File> {
    toml::from_str(text).map_err(|error| {
        let (line, message) = setting_error(text, error.span(), error.message());
        anyhow!("{}:{line}: {message}", path.display())
    })
}

fn lifetime((path, text): (&Path, &str), key: &str, value: &str) -> Result<Duration> {
    let line = setting_at(text, key).map_or(1, |(line, _)| line);
    let place = format!("{}:{line}: `{key}`", path.display());
    let lifetime = time::parse_duration(value).map_err(|error| anyhow!("{place}: {error}"))?;
    if lifetime < MIN_LIFETIME {
        bail!("{place} {value:?} is too short: it is renewed at half of it; give at least 2s");
    }
    Ok(lifetime)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("controller.toml");
        std::fs::write(&path, text)?;
        Settings::read(Some(&path))
    }

    /// `agentctl schema controller` is made of it.
    #[test]
    fn the_shipped_file_has_every_key() {
        let text = include_str!("../../configs/controller.toml");
        let shipped: toml::Table = text.parse().unwrap();
        let error = format!("{:#}", read("nobody_knows = 1").unwrap_err());
        let (_, expected) = error.split_once("expected one of").unwrap();
        let keys: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        assert!(keys.len() > 1, "{error}");
        for key in keys {
            assert!(shipped.contains_key(key), "configs/controller.toml lacks {key}");
        }
    }

    #[test]
    fn a_misspelt_key_is_told_what_was_meant() {
        let error = format!("{:#}", read("lisen = '[::]:7443'").unwrap_err());
        assert!(error.contains("controller.toml") && error.contains("`lisen`"), "{error}");
        assert!(error.ends_with("; did you mean `listen`?"), "{error}");
    }

    #[test]
    fn every_key_may_be_left_out() {
        let settings = read("").unwrap();
        assert_eq!(settings.listen.port(), DEFAULT_PORT);
        assert_eq!(settings.certificate_lifetime, DEFAULT_LIFETIME);
        assert_eq!(settings.operator_lifetime, OPERATOR_LIFETIME);
        let settings = read("certificate_lifetime = '8s'\nlog_format = 'json'").unwrap();
        assert_eq!(settings.certificate_lifetime, Duration::from_secs(8));
        assert_eq!(settings.log_format, LogFormat::Json);
    }

    #[test]
    fn the_example_says_the_defaults() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/controller.toml"));
        let (example, default) = (Settings::read(Some(path)).unwrap(), read("").unwrap());
        assert_eq!(format!("{example:?}"), format!("{default:?}"));
    }

    #[test]
    fn a_wrong_value_is_told_with_its_line_and_what_is_expected() {
        for (text, said) in [
            ("\nlisten = '0.0.0.0'", ":2: `listen` must be ADDRESS:PORT"),
            ("listen = 7443", ":1: `listen` must be "),
            ("log = 'info'\n\nstate_dir = true", ":3: `state_dir` must be a text in quotes"),
            ("log_format = 'xml'", ":1: `log_format` can't be that: unknown variant `xml`"),
            ("\ncertificate_lifetime = '1s'", ":2: `certificate_lifetime` \"1s\" is too short"),
            ("\noperator_lifetime = 'long'", ":2: `operator_lifetime`: "),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(&format!("controller.toml{said}")), "{error}");
        }
    }

    #[test]
    fn what_no_setting_is_is_an_error() {
        assert!(format!("{:#}", read("lisen = 'x'").unwrap_err()).contains("lisen"));
        assert!(read("certificate_lifetime = '1s'").is_err());
        let said = format!("{:#}", read("operator_lifetime = '1s'").unwrap_err());
        assert!(said.contains("operator_lifetime"), "{said}");
    }
}
