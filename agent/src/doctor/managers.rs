//! Whoever else manages the host's network: systemd-networkd, NetworkManager, the resolver.

use std::fs;
use std::path::{Path, PathBuf};

use isthmus_model::{Code, Problem};

use super::{Host, Report};
use crate::settings::ConfigureResolver;

/// Where networkd reads what it manages from, the stronger first.
const NETWORKS: [&str; 4] = [
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/lib/systemd/network",
    "/lib/systemd/network",
];
const NETWORKD: &str = "/run/systemd/netif";
const NETWORK_MANAGER: &str = "/run/NetworkManager";
const UNMANAGED: &str = "/etc/systemd/network/00-isthmus.network";

pub(super) fn check(host: &Host, report: &mut Report) {
    let device = &host.settings.device;
    let mut problems = Vec::new();
    let (mut found, mut managed) = ("none that meddles", None);
    if Path::new(NETWORKD).exists() {
        found = "systemd-networkd";
        managed = files(&NETWORKS)
            .into_iter()
            .find_map(|path| Some((manages(&fs::read_to_string(&path).ok()?, device)?, path)));
    }
    if let Some((true, path)) = managed {
        problems.push(networkd(device, &path));
    }
    if Path::new(NETWORK_MANAGER).exists() {
        found = "NetworkManager";
    }
    report.add("managers", found, problems);
    let resolver = match host.settings.dns.configure {
        ConfigureResolver::Resolved if !Path::new("/run/systemd/resolve").exists() => Some(
            "[dns] configure is \"resolved\", and systemd-resolved doesn't run: mesh names aren't known",
        ),
        ConfigureResolver::Resolved
        | ConfigureResolver::Auto
        | ConfigureResolver::Off
        | ConfigureResolver::ResolvConf => None,
    };
    let resolver = resolver.map(|text| {
        let remedy =
            "`systemctl enable --now systemd-resolved`, or set [dns] configure = \"resolv-conf\"";
        Problem::new(Code::ResolverUntold, text, remedy)
    });
    report.add("resolver", "of names", resolver.into_iter().collect::<Vec<_>>());
}

/// The files in the order in which networkd looks at them: by name, whichever folder they are in.
fn files(folders: &[&str]) -> Vec<PathBuf> {
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let is_network = |path: &PathBuf| path.extension().is_some_and(|it| it == "network");
    let mut paths: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_network).collect();
    paths.sort_by(|one, other| one.file_name().cmp(&other.file_name()));
    paths
}

/// Whether a `.network` file is about the device; if so, whether it has networkd manage it. The first
/// that is about it counts.
fn manages(text: &str, device: &str) -> Option<bool> {
    let (mut section, mut matches, mut names, mut unmanaged) = (String::new(), false, None, false);
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            name.clone_into(&mut section);
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let (key, value) = (key.trim(), value.trim());
        match (section.as_str(), key) {
            ("Match", "Name") => names = Some(fits(value, device)),
            // It is a TUN device; what else is asked for it isn't.
            ("Match", "Type") => matches |= fits(value, "none"),
            ("Match", _) => names = Some(false),
            ("Link", "Unmanaged") => {
                unmanaged =
                    ["yes", "true", "1", "on"].contains(&value.to_ascii_lowercase().as_str());
            }
            _ => {}
        }
    }
    names.unwrap_or(matches).then_some(!unmanaged)
}

/// A list of shell patterns, of which we know `*` at an end; `!` turns all of them around.
fn fits(patterns: &str, name: &str) -> bool {
    let (patterns, wanted) =
        patterns.strip_prefix('!').map_or((patterns, true), |rest| (rest, false));
    let one = |pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    };
    patterns.split_whitespace().any(one) == wanted
}

fn networkd(device: &str, path: &Path) -> Problem {
    let text = format!(
        "systemd-networkd manages {device}, by {}: with each reload it takes its addresses and routes away",
        path.display()
    );
    let remedy = format!(
        "`printf '[Match]\\nName={device}\\n[Link]\\nUnmanaged=yes\\n' > {UNMANAGED} && networkctl reload`"
    );
    Problem::new(Code::NetworkManaged, text, remedy).about(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_networkds_is_about_the_device_or_not() {
        for (text, found) in [
            ("[Match]\nName=*\n[Network]\nDHCP=yes\n", Some(true)),
            ("[Match]\nName=en* isth*\n", Some(true)),
            ("[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n", None),
            ("[Match]\nName=!en*\n", Some(true)),
            ("[Match]\nName=!isth0\n", None),
            ("[Match]\nName=isth0\n[Link]\nUnmanaged=yes\n", Some(false)),
            ("# Name=*\n[Match]\n; all\nName=eth0\n", None),
            ("[Match]\nType=ether\n", None),
            ("[Match]\nType=none\n", Some(true)),
            ("[Match]\nMACAddress=00:11:22:33:44:55\n", None),
            ("", None),
        ] {
            assert_eq!(manages(text, "isth0"), found, "{text}");
        }
    }

    #[test]
    fn the_first_file_by_name_counts_and_the_remedy_is_the_first() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(one.path().join("80-all.network"), "[Match]\nName=*\n").unwrap();
        fs::write(other.path().join("00-isthmus.network"), "x").unwrap();
        fs::write(other.path().join("10-a.link"), "x").unwrap();
        let folders = [one.path().to_str().unwrap(), other.path().to_str().unwrap()];
        let names: Vec<_> = files(&folders)
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect();
        assert_eq!(names, ["00-isthmus.network", "80-all.network"]);
        let problem = networkd("isth0", Path::new("/etc/systemd/network/80-all.network"));
        let written = problem.remedy.split('\'').nth(1).unwrap().replace("\\n", "\n");
        assert_eq!(manages(&written, "isth0"), Some(false));
    }
}
