//! A packet filter around the overlay's addresses, so that they mean something only on the overlay.
//!
//! Linux takes a packet for any address of the host by any interface, and sends one for a missing
//! route by the default route. Without a filter, a neighbour on the underlay reaches a workload's
//! address past tunnel and policy; and while the agent is dead, what is meant for the overlay leaves
//! in plaintext. The filter outlives a crash of the agent on purpose, and goes at a clean stop.

use std::process::Stdio;

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Lets overlay addresses in and out by the overlay's device and loopback only. Replaces what an
/// earlier life of the agent set.
///
/// # Errors
/// When `nft` isn't there or the kernel refuses.
pub async fn raise(device: &str, prefixes: &[IpNet]) -> anyhow::Result<()> {
    nft(&rules(device, prefixes)).await
}

/// Takes the filter away.
///
/// # Errors
/// When `nft` isn't there or the kernel refuses.
pub async fn lower(device: &str) -> anyhow::Result<()> {
    nft(&no_rules(device)).await
}

fn rules(device: &str, prefixes: &[IpNet]) -> String {
    let chains = [
        ("input", "iifname", &["saddr", "daddr"][..]),
        ("forward", "oifname", &["daddr"]),
        ("output", "oifname", &["daddr"]),
    ];
    let mut text = no_rules(device);
    text += &format!("table inet isthmus-{device} {{\n");
    for (chain, interface, sides) in chains {
        text +=
            &format!("chain {chain} {{ type filter hook {chain} priority -150; policy accept;\n");
        for prefix in prefixes {
            let family = if matches!(prefix, IpNet::V4(_)) { "ip" } else { "ip6" };
            for side in sides {
                text += &format!(
                    "{interface} != {{ \"lo\", \"{device}\" }} {family} {side} {prefix} counter drop\n"
                );
            }
        }
        text += "}\n";
    }
    text + "}\n"
}

/// Deleting needs the table to be there: declaring it first makes it so.
fn no_rules(device: &str) -> String {
    format!("table inet isthmus-{device} {{}}\ndelete table inet isthmus-{device}\n")
}

pub(crate) async fn nft(script: &str) -> anyhow::Result<()> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("Failed to start nft; install the package nftables")?;
    let mut input = nft.stdin.take().context("nft has no input")?;
    input.write_all(script.as_bytes()).await.context("Failed to tell nft the rules")?;
    drop(input);
    let output = nft.wait_with_output().await.context("Failed to wait for nft")?;
    if !output.status.success() {
        bail!(
            "nft refused the overlay's filter: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_guarded_both_ways() {
        let prefixes = ["100.64.0.0/10".parse().unwrap(), "fd00:1:2::/48".parse().unwrap()];
        let rules = rules("isth0", &prefixes);
        for rule in [
            "iifname != { \"lo\", \"isth0\" } ip daddr 100.64.0.0/10 counter drop",
            "iifname != { \"lo\", \"isth0\" } ip6 saddr fd00:1:2::/48 counter drop",
            "oifname != { \"lo\", \"isth0\" } ip6 daddr fd00:1:2::/48 counter drop",
        ] {
            assert!(rules.contains(rule), "{rules}");
        }
        assert!(rules.starts_with("table inet isthmus-isth0 {}\ndelete table"));
    }
}
