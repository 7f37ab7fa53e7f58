//! Packet capture of a wire.

use std::net::IpAddr;
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

/// The frames of a recording of Ethernet.
pub fn frames(recording: &[u8]) -> impl Iterator<Item = &[u8]> {
    const FILE_HEADER: usize = 24;
    const FRAME_HEADER: usize = 16;
    let mut rest = recording.get(FILE_HEADER..).unwrap_or_default();
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<FRAME_HEADER>()?;
        let captured = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let frame = rest.get(FRAME_HEADER..)?.get(..captured as usize)?;
        rest = &rest[FRAME_HEADER + frame.len()..];
        Some(frame)
    })
}

/// The addresses of a frame's IP packet, the sender's first.
#[must_use]
pub fn ends(frame: &[u8]) -> Option<[IpAddr; 2]> {
    let v4 = |at: usize| Some(IpAddr::from(*frame.get(at..)?.first_chunk::<4>()?));
    let v6 = |at: usize| Some(IpAddr::from(*frame.get(at..)?.first_chunk::<16>()?));
    match frame.get(12..14)? {
        [0x08, 0x00] => Some([v4(26)?, v4(30)?]),
        [0x86, 0xdd] => Some([v6(22)?, v6(38)?]),
        _ => None,
    }
}
