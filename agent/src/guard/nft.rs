//! Tells nftables what to do, by its own program.

use std::collections::VecDeque;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Runs of `nft` that are remembered as ours.
const REMEMBERED: usize = 16;

/// `nft`, and which of its runs were ours.
#[derive(Debug, Default)]
pub(crate) struct Nft {
    runs: Mutex<VecDeque<u32>>,
}

impl Nft {
    /// Has the kernel do all that `script` says, or nothing of it.
    ///
    /// # Errors
    /// When `nft` isn't there, or the kernel refuses.
    pub(crate) async fn run(&self, script: &str) -> anyhow::Result<()> {
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("Failed to start nft; install the package nftables")?;
        // INVARIANT: known before it can change anything.
        self.remember(nft.id());
        let mut input = nft.stdin.take().context("nft has no input")?;
        input.write_all(script.as_bytes()).await.context("Failed to tell nft the rules")?;
        drop(input);
        let output = nft.wait_with_output().await.context("Failed to wait for nft")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("nft refused the guard's rules: {}", said.trim());
        }
        Ok(())
    }

    /// Whether a process was one of ours.
    #[must_use]
    pub(crate) fn ran_as(&self, process: u32) -> bool {
        self.runs.lock().contains(&process)
    }

    fn remember(&self, process: Option<u32>) {
        let mut runs = self.runs.lock();
        if runs.len() >= REMEMBERED {
            runs.pop_front();
        }
        runs.extend(process);
    }
}
