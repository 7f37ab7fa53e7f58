//! What really went over a wire.

use std::path::PathBuf;
use std::time::Duration;

use crate::lab::Node;
use crate::process::Process;
use crate::wait::wait_for;

/// A running `tcpdump`.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts to record everything on an interface.
    ///
    /// # Panics
    ///
    /// If tcpdump doesn't start.
    #[must_use]
    pub fn start(node: &Node, interface: &str) -> Self {
        let file = node.folder().join(format!("{interface}.pcap"));
        let mut command = node.command("tcpdump");
        command
            .args([
                "-U",
                "--immediate-mode",
                "-n",
                "-s",
                "0",
                "-Z",
                "root",
                "-B",
                "16384",
                "-i",
                interface,
                "-w",
            ])
            .arg(&file);
        let tcpdump = node.spawn("tcpdump", command);
        wait_for("tcpdump listens", Duration::from_secs(5), || {
            tcpdump.output().contains("listening on")
        });
        Self { tcpdump, file }
    }

    /// Ends the recording and gives its bytes (pcap format).
    ///
    /// # Panics
    ///
    /// If there is no recording.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.tcpdump.terminate(Duration::from_secs(5));
        std::fs::read(&self.file).expect("tcpdump wrote its file")
    }

    /// Whether `bytes` occur anywhere in a recording.
    #[must_use]
    pub fn contains(recording: &[u8], bytes: &[u8]) -> bool {
        recording.windows(bytes.len()).any(|window| window == bytes)
    }
}
