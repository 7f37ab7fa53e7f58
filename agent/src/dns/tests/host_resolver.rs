use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::net::UdpSocket;

use super::support::snapshot;
use crate::dns::resolver::{Paths, Resolver, ResolverError};
use crate::dns::wire;
use crate::settings::{ConfigureResolver, Settings};

const FORMER: &str = "nameserver 192.0.2.1\nsearch example.com\noptions rotate\n";

const NXDOMAIN: u8 = 3;
const SERVFAIL: u8 = 2;
const SERVERS: [&str; 2] = ["100.64.1.0", "fd12:3456:789a::1:0:0"];

/// A host's files, in a directory of their own.
struct Files {
    dir: TempDir,
    paths: Paths,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            resolved: dir.path().join("resolve"),
            resolvectl: dir.path().join("resolvectl"),
            stub: ([127, 0, 0, 1], 1).into(),
            resolv_conf: dir.path().join("resolv.conf"),
            kept: dir.path().join("state/kept"),
        };
        Self { dir, paths }
    }

    /// A systemd-resolved whose control program notes what it was told, and then does `end`.
    fn with_resolved(end: &str) -> Self {
        let files = Self::new();
        fs::create_dir(&files.paths.resolved).unwrap();
        let script = format!("#!/bin/sh\necho \"$@\" >>{}\n{end}\n", files.told_file().display());
        fs::write(&files.paths.resolvectl, script).unwrap();
        fs::set_permissions(&files.paths.resolvectl, Permissions::from_mode(0o755)).unwrap();
        files
    }

    fn with_resolv_conf() -> Self {
        let files = Self::new();
        fs::write(&files.paths.resolv_conf, FORMER).unwrap();
        files
    }

    fn resolver(&self, setting: ConfigureResolver) -> Resolver {
        Resolver::new(setting, &Settings::default().dns.search, self.paths.clone())
    }

    fn told_file(&self) -> PathBuf {
        self.dir.path().join("told")
    }

    fn told(&self) -> String {
        fs::read_to_string(self.told_file()).unwrap_or_default()
    }

    fn resolv_conf(&self) -> String {
        fs::read_to_string(&self.paths.resolv_conf).unwrap()
    }
}

async fn configure(resolver: &mut Resolver) -> Result<(), ResolverError> {
    let servers = SERVERS.map(|ip| ip.parse::<IpAddr>().unwrap());
    resolver.configure("isth0", &servers, &snapshot().mesh).await
}

#[tokio::test]
async fn resolved_is_told_of_the_device_and_told_to_forget_it() {
    let files = Files::with_resolved("");
    let mut resolver = files.resolver(ConfigureResolver::Auto);
    assert_eq!(resolver.upstream_file(), files.paths.resolv_conf);
    configure(&mut resolver).await.unwrap();

    let told = files.told();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[0], "dns isth0 100.64.1.0 fd12:3456:789a::1:0:0");
    assert!(lines[1].starts_with("domain isth0 mesh.internal ~a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa "));
    assert!(
        lines[1].contains(" ~64.100.in-addr.arpa ") && lines[1].ends_with("~127.100.in-addr.arpa")
    );
    assert_eq!(lines[2], "default-route isth0 no");
    assert_eq!(lines.len(), 3);

    resolver.restore().await.unwrap();
    resolver.restore().await.unwrap();
    assert_eq!(files.told().lines().skip(3).collect::<Vec<_>>(), ["revert isth0"]);
}

#[tokio::test]
async fn a_refusal_of_resolved_is_passed_on_and_nothing_is_left() {
    let files = Files::with_resolved("[ $1 = domain ] && { echo no way >&2; exit 1; }; exit 0");
    let mut resolver = files.resolver(ConfigureResolver::Resolved);
    let error = configure(&mut resolver).await.unwrap_err().to_string();
    assert!(error.contains("no way") && error.contains("domain isth0"), "{error}");
    assert!(files.told().ends_with("revert isth0\n"), "{}", files.told());
}

#[tokio::test]
async fn without_resolved_auto_does_nothing_and_resolved_says_why() {
    let files = Files::with_resolv_conf();
    let mut resolver = files.resolver(ConfigureResolver::Auto);
    configure(&mut resolver).await.unwrap();
    resolver.restore().await.unwrap();
    assert_eq!(files.resolv_conf(), FORMER);

    let mut resolver = files.resolver(ConfigureResolver::Resolved);
    let error = configure(&mut resolver).await.unwrap_err().to_string();
    assert!(error.contains("systemd-resolved doesn't run here"), "{error}");
}

#[tokio::test]
async fn off_means_off() {
    let files = Files::with_resolved("");
    let mut resolver = files.resolver(ConfigureResolver::Off);
    configure(&mut resolver).await.unwrap();
    resolver.restore().await.unwrap();
    assert_eq!(files.told(), "");
}

#[tokio::test]
async fn resolv_conf_is_rewritten_when_asked_and_put_back() {
    let files = Files::with_resolv_conf();
    let mut resolver = files.resolver(ConfigureResolver::ResolvConf);
    for _ in 0..2 {
        configure(&mut resolver).await.unwrap();
        let text = files.resolv_conf();
        assert!(
            text.contains("nameserver 100.64.1.0\nnameserver fd12:3456:789a::1:0:0\n"),
            "{text}"
        );
        assert!(text.ends_with("search example.com mesh.internal\noptions rotate\n"), "{text}");
        assert!(!text.contains("192.0.2.1"), "{text}");
        assert_eq!(fs::read_to_string(resolver.upstream_file()).unwrap(), FORMER);
    }
    resolver.restore().await.unwrap();
    resolver.restore().await.unwrap();
    assert_eq!(files.resolv_conf(), FORMER);
    let mode = fs::metadata(&files.paths.resolv_conf).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
}

#[tokio::test]
async fn a_file_that_others_write_is_noticed_and_what_they_wrote_is_asked_from_then_on() {
    let files = Files::with_resolv_conf();
    let mut resolver = files.resolver(ConfigureResolver::ResolvConf);
    let servers = SERVERS.map(|ip| ip.parse::<IpAddr>().unwrap());
    assert!(!resolver.is_told(&servers).await);
    configure(&mut resolver).await.unwrap();
    assert!(resolver.is_told(&servers).await);
    assert!(!resolver.is_told(&servers[..1]).await, "our addresses can change");

    let dhcp = "nameserver 198.51.100.1\n";
    fs::write(&files.paths.resolv_conf, dhcp).unwrap();
    assert!(!resolver.is_told(&servers).await);
    configure(&mut resolver).await.unwrap();
    assert!(resolver.is_told(&servers).await);
    assert_eq!(fs::read_to_string(resolver.upstream_file()).unwrap(), dhcp);

    fs::write(&files.paths.resolv_conf, files.resolv_conf() + "nameserver 9.9.9.9\n").unwrap();
    assert!(!resolver.is_told(&servers).await, "ours, with an addition");
    resolver.restore().await.unwrap();
    assert_eq!(files.resolv_conf(), dhcp);
}

#[tokio::test]
async fn resolved_that_comes_up_later_or_forgets_is_told_again() {
    let mut files = Files::with_resolved("");
    fs::remove_dir(&files.paths.resolved).unwrap();
    let stub = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    files.paths.stub = stub.local_addr().unwrap();
    let mut resolver = files.resolver(ConfigureResolver::Auto);
    assert!(resolver.is_told(&[]).await, "there is nobody to tell");
    fs::create_dir(&files.paths.resolved).unwrap();
    assert!(!resolver.is_told(&[]).await);
    configure(&mut resolver).await.unwrap();
    assert!(files.told().starts_with("dns isth0 "), "{}", files.told());
    for (code, is_told) in [(NXDOMAIN, false), (SERVFAIL, true)] {
        let answering = async {
            let mut query = [0; 512];
            loop {
                let (length, from) = stub.recv_from(&mut query).await.unwrap();
                stub.send_to(&wire::bare_reply(&query[..length], code), from).await.unwrap();
            }
        };
        tokio::select! {
            told = resolver.is_told(&[]) => assert_eq!(told, is_told, "{code}"),
            () = answering => {}
        }
    }
}

#[tokio::test]
async fn after_a_crash_the_next_start_puts_resolv_conf_back() {
    let files = Files::with_resolv_conf();
    configure(&mut files.resolver(ConfigureResolver::ResolvConf)).await.unwrap();
    assert_ne!(files.resolv_conf(), FORMER);
    // The setting may have changed meanwhile.
    files.resolver(ConfigureResolver::Off).recover().unwrap();
    assert_eq!(files.resolv_conf(), FORMER);
    files.resolver(ConfigureResolver::Off).recover().unwrap();
    assert_eq!(files.resolv_conf(), FORMER);
}

#[tokio::test]
async fn a_link_becomes_a_link_again() {
    let files = Files::new();
    fs::create_dir(files.dir.path().join("run")).unwrap();
    let target = files.dir.path().join("run/stub.conf");
    fs::write(&target, FORMER).unwrap();
    symlink("run/stub.conf", &files.paths.resolv_conf).unwrap();

    let mut resolver = files.resolver(ConfigureResolver::ResolvConf);
    configure(&mut resolver).await.unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), FORMER);
    assert!(files.resolv_conf().contains("100.64.1.0"));
    resolver.restore().await.unwrap();
    assert_eq!(fs::read_link(&files.paths.resolv_conf).unwrap(), PathBuf::from("run/stub.conf"));
}

#[tokio::test]
async fn what_somebody_else_wrote_meanwhile_stays() {
    let files = Files::with_resolv_conf();
    let mut resolver = files.resolver(ConfigureResolver::ResolvConf);
    configure(&mut resolver).await.unwrap();
    fs::write(&files.paths.resolv_conf, "nameserver 198.51.100.1\n").unwrap();
    resolver.restore().await.unwrap();
    assert_eq!(files.resolv_conf(), "nameserver 198.51.100.1\n");

    // And is what is put back the next time.
    configure(&mut resolver).await.unwrap();
    resolver.restore().await.unwrap();
    assert_eq!(files.resolv_conf(), "nameserver 198.51.100.1\n");
}
