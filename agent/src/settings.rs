//! The agent's settings: one TOML file, every key optional, an unknown key an error.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use http::Uri;
use http::uri::PathAndQuery;
use isthmus_core::{Cipher, Ciphers};
use isthmus_model::Name;
use isthmus_model::topology::{setting_at, setting_error};
use serde::Deserialize;

/// Default path of the settings.
pub const DEFAULT_PATH: &str = "/etc/isthmus/agent.toml";

/// Where the mesh's names are.
pub const MESH_DOMAIN: &str = "mesh.internal";

/// What an administrator may decide about this agent. Secrets are no settings: a token comes in
/// through the socket, keys are made here.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where identity and snapshot live.
    pub state_dir: PathBuf,
    /// The Unix socket of the local API.
    pub socket: PathBuf,
    /// The TUN device's name.
    pub device: String,
    /// Whether there may be an overlay without a packet filter around it.
    pub guard: GuardMode,
    /// The UDP port of the tunnels.
    pub listen_port: u16,
    /// The TUN device's MTU; 0: what the underlay has room for.
    pub mtu: u16,
    /// What traffic between agents is sealed with.
    pub bulk: Bulk,
    /// Pairs of threads that carry packets; 0: by the number of processors.
    pub lanes: u8,
    /// The TCP port that flows of http services are handed to.
    pub proxy_port: u16,
    /// Threads that carry requests; 0: by the number of processors.
    pub proxy_threads: u8,
    /// What requests under way may take at a stop, in seconds.
    pub drain_seconds: u16,
    /// What a request may take, from its head to its answer's end, in seconds.
    pub request_seconds: u32,
    /// How long nothing may come of a request's body while there is no answer, in seconds.
    pub body_idle_seconds: u16,
    /// Where metrics and health are served; empty: nowhere.
    pub metrics: String,
    /// What to log: a level, or levels by crate and module (`tracing_subscriber`'s `Targets`).
    pub log: String,
    /// Text for people, JSON for machines.
    pub log_format: LogFormat,
    /// How the access log's lines are written.
    pub access_log: AccessLog,
    /// Which share of the requests that nothing is wrong with has a line there.
    pub access_log_sample: f64,
    /// Where the tunnels can be reached, instead of this host's own addresses.
    pub endpoints: Vec<SocketAddr>,
    /// Mesh DNS.
    pub dns: DnsSettings,
    /// Who is asked about containers.
    pub containers: ContainerSettings,
    /// Traces of requests.
    pub tracing: TracingSettings,
}

/// Who is asked about containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerSettings {
    /// Engines' sockets, which speak Docker's API; none: where Docker and Podman have theirs.
    pub engines: Vec<PathBuf>,
}

/// What traffic between agents is sealed with, beside WireGuard's own sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bulk {
    /// AES where both processors have it, ChaCha20 elsewhere.
    #[default]
    Auto,
    /// AES-256-GCM.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
    /// Nothing: all traffic goes by WireGuard sessions.
    Off,
}

impl Bulk {
    /// What this host offers. AES without the processor's help is slow, and leaks through its tables.
    #[must_use]
    pub fn ciphers(self) -> Ciphers {
        match self {
            Self::Auto if has_aes() => Ciphers::of(&[Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305]),
            Self::Auto | Self::ChaCha20Poly1305 => Ciphers::of(&[Cipher::ChaCha20Poly1305]),
            Self::Aes256Gcm => Ciphers::of(&[Cipher::Aes256Gcm]),
            Self::Off => Ciphers::NONE,
        }
    }
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// What becomes of a host that can't guard the overlay's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardMode {
    /// It has no overlay.
    #[default]
    Required,
    /// It has one, and its operators are told.
    Optional,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// How the access log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// As all other lines.
    #[default]
    Log,
    /// Readable lines.
    Text,
    /// JSON objects.
    Json,
    /// Not at all.
    Off,
}

/// The `[tracing]` table.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingSettings {
    /// Where spans go, `http://HOST:PORT` of an OTLP receiver; empty: nowhere.
    pub otlp: String,
    /// Which share of the requests that belong to no trace begins a sampled one.
    pub sample: f64,
}

/// The `[dns]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsSettings {
    /// Whether to answer on this host's overlay addresses, port 53.
    pub listen: bool,
    /// Who answers other names; empty: the host's own resolvers.
    pub upstream: Vec<SocketAddr>,
    /// How the host comes to ask the mesh's DNS.
    pub configure: ConfigureResolver,
    /// Domains of the mesh that names may leave out.
    pub search: Vec<SearchDomain>,
}

/// A domain of the mesh that names may leave out: `mesh.internal`, or a namespace in it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SearchDomain(String);

impl SearchDomain {
    /// The domain.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `web.prod` is a name then.
    #[must_use]
    pub fn is_whole_mesh(&self) -> bool {
        self.0 == MESH_DOMAIN
    }
}

impl TryFrom<String> for SearchDomain {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let namespace = text.strip_suffix(MESH_DOMAIN).and_then(|it| it.strip_suffix('.'));
        if text == MESH_DOMAIN || namespace.is_some_and(|it| it.parse::<Name>().is_ok()) {
            return Ok(Self(text));
        }
        Err(format!(
            "{text:?} is no domain of the mesh: write \"{MESH_DOMAIN}\" or \"prod.{MESH_DOMAIN}\""
        ))
    }
}

/// How the host's resolver is told about mesh names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfigureResolver {
    /// Through systemd-resolved where it runs, else not at all.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// Through systemd-resolved.
    Resolved,
    /// By rewriting `/etc/resolv.conf`, and restoring it at the end.
    ResolvConf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/isthmus/agent".into(),
            socket: "/run/isthmus/agent.sock".into(),
            device: "isth0".to_owned(),
            guard: GuardMode::Required,
            listen_port: 51820,
            mtu: 0,
            bulk: Bulk::Auto,
            lanes: 0,
            proxy_port: 15001,
            proxy_threads: 0,
            drain_seconds: 5,
            request_seconds: 86_400,
            body_idle_seconds: 300,
            metrics: "127.0.0.1:9464".to_owned(),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            access_log: AccessLog::Log,
            access_log_sample: 0.01,
            endpoints: Vec::new(),
            dns: DnsSettings::default(),
            containers: ContainerSettings::default(),
            tracing: TracingSettings::default(),
        }
    }
}

impl DnsSettings {
    /// Whether `web.prod` is a name, too.
    #[must_use]
    pub fn short_names(&self) -> bool {
        self.search.iter().any(SearchDomain::is_whole_mesh)
    }
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            listen: true,
            upstream: Vec::new(),
            configure: ConfigureResolver::Auto,
            search: vec![SearchDomain(MESH_DOMAIN.to_owned())],
        }
    }
}

/// Why there are no settings; each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read.
    #[error("can't read the settings file {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file isn't what it should be.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// A value that the agent can't work with.
    #[error("{}:{line}: `{key}` {message}, not {value}", path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Which setting.
        key: &'static str,
        /// Its value, as it stands there.
        value: String,
        /// What is wrong with it.
        message: String,
    },
}

const LEAST_MTU: u16 = 1280;
const MOST_MTU: u16 = 8920;
/// What a tunnel over IPv6 adds to a packet.
const TUNNEL_OVERHEAD: u32 = 80;
/// As many as a bulk session can tell apart.
const MOST_LANES: u8 = isthmus_core::LANES;
const MOST_PROXY_THREADS: u8 = 16;

impl Settings {
    /// Reads a settings file. A missing file at the default place means default settings.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound
                    && path == Path::new(DEFAULT_PATH) =>
            {
                Ok(Self::default())
            }
            Err(source) => Err(SettingsError::Read { path: path.to_owned(), source }),
        }
    }

    /// Parses a settings file's text; `path` is for messages.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let settings: Self = toml::from_str(text).map_err(|error| {
            let (line, message) = setting_error(text, error.span(), error.message());
            SettingsError::Parse { path: path.to_owned(), line, message }
        })?;
        settings.check(path, text)?;
        Ok(settings)
    }

    /// The overlay's MTU, where the widest link of the underlay has this one.
    #[must_use]
    pub fn mtu(&self, underlay: Option<u32>) -> u16 {
        if self.mtu > 0 {
            return self.mtu;
        }
        let room = underlay.unwrap_or(1500).saturating_sub(TUNNEL_OVERHEAD);
        u16::try_from(room).unwrap_or(MOST_MTU).clamp(LEAST_MTU, MOST_MTU)
    }

    /// How many lanes there are: each keeps two processors busy at the most.
    #[must_use]
    pub fn lanes(&self) -> u8 {
        if self.lanes > 0 {
            return self.lanes;
        }
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        u8::try_from(processors / 2).unwrap_or(MOST_LANES).clamp(1, MOST_LANES)
    }

    /// How many threads carry requests: each keeps one processor busy at the most.
    #[must_use]
    pub fn proxy_threads(&self) -> usize {
        if self.proxy_threads > 0 {
            return self.proxy_threads.into();
        }
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        processors.clamp(1, MOST_PROXY_THREADS.into())
    }

    /// Where metrics are served, if anywhere.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.parse().ok()
    }

    fn check(&self, path: &Path, text: &str) -> Result<(), SettingsError> {
        let refuse = |key, message: &str| {
            // A default is never refused: it is there, or in a table in braces.
            let (line, value) = setting_at(text, key).unwrap_or((1, "what it is"));
            let (path, value, message) = (path.to_owned(), value.to_owned(), message.to_owned());
            Err(SettingsError::Value { path, line, key, value, message })
        };
        if self.mtu != 0 && !(LEAST_MTU..=MOST_MTU).contains(&self.mtu) {
            let message = "must be from 1280 (IPv6 needs it) to 8920 (which fits jumbo frames of \
                           9000), or 0 to go by the underlay";
            return refuse("mtu", message);
        }
        if self.lanes > MOST_LANES {
            return refuse("lanes", "must be from 1 to 16, or 0 to go by the number of processors");
        }
        if self.proxy_threads > MOST_PROXY_THREADS {
            let message = "must be from 1 to 16, or 0 to go by the number of processors";
            return refuse("proxy_threads", message);
        }
        if self.drain_seconds > 3600 {
            return refuse("drain_seconds", "must be from 0 to 3600");
        }
        if self.request_seconds == 0 || self.request_seconds > 31_536_000 {
            return refuse("request_seconds", "must be from 1 to 31536000, which is a year");
        }
        if self.body_idle_seconds == 0 {
            return refuse("body_idle_seconds", "must be from 1 to 65535");
        }
        if self.listen_port == 0 {
            return refuse("listen_port", "must be from 1 to 65535: other hosts need to know it");
        }
        if self.proxy_port == 0 {
            return refuse("proxy_port", "must be from 1 to 65535");
        }
        if !self.metrics.is_empty() && self.metrics.parse::<SocketAddr>().is_err() {
            return refuse("metrics", "must be ADDRESS:PORT, or \"\" to serve no metrics");
        }
        if !self.tracing.otlp.is_empty()
            && let Err(wrong) = otlp_endpoint(&self.tracing.otlp)
        {
            return refuse("tracing.otlp", wrong);
        }
        if !(0.0..=1.0).contains(&self.access_log_sample) {
            return refuse("access_log_sample", "must be from 0.0 (none) to 1.0 (all)");
        }
        if !(0.0..=1.0).contains(&self.tracing.sample) {
            return refuse("tracing.sample", "must be from 0.0 (none) to 1.0 (all)");
        }
        if self.endpoints.len() > 16 {
            return refuse("endpoints", "must have at most 16 entries");
        }
        Ok(())
    }
}

/// The place of an OTLP receiver, from the setting `tracing.otlp`; its usual path where none is given.
///
/// # Errors
/// In words, if it isn't a place.
pub(crate) fn otlp_endpoint(text: &str) -> Result<Uri, &'static str> {
    let wrong = "must be http://HOST:PORT, perhaps with a path, or \"\" to export no spans";
    let uri: Uri = text.parse().map_err(|_| wrong)?;
    if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) {
        return Err(wrong);
    }
    if uri.path() != "/" {
        return Ok(uri);
    }
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static("/v1/traces"));
    Uri::from_parts(parts).map_err(|_| wrong)
}

#[cfg(test)]
mod tests;
