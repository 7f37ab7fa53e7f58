//! `isthmus-agent check`: what would keep an agent from working on this host, found by looking, without
//! an agent and without changing anything. `agentctl check` runs it, and adds what the agent knows.
//!
//! ```text
//!  settings ─▶ rights ─▶ kernel, TUN, nftables, cgroups, sockets ─▶ network, routes, ports, firewall ─▶ state, mesh
//! ```
//!
//! Each check says what it found, and raises problems of the same kinds as the agent does. It works before
//! this host has joined, and where the agent is down; where it runs, what it has is not looked at: its ports
//! are taken by itself.

mod kernel;
mod managers;
mod network;
mod state;

use std::os::unix::net::UnixStream;
use std::path::Path;

use isthmus_model::{Code, Problem};
use serde_json::{Value, json};

use crate::settings::{Settings, SettingsError};

/// Results of the checks, in order.
#[derive(Debug, Default)]
pub struct Report {
    checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug)]
struct Check {
    name: &'static str,
    /// In a few words, for people.
    found: String,
    problems: Vec<Problem>,
}

/// Facts shared by all checks.
struct Host {
    settings: Settings,
    /// Whether an agent answers on the socket.
    runs: bool,
}

impl Report {
    fn add(
        &mut self,
        name: &'static str,
        found: impl Into<String>,
        problems: impl Into<Vec<Problem>>,
    ) {
        self.checks.push(Check { name, found: found.into(), problems: problems.into() });
    }

    /// For `agentctl`.
    #[must_use]
    pub fn json(&self) -> Value {
        let problem = |it: &Problem| {
            json!({
                "code": it.code.name(),
                "subject": it.subject,
                "text": it.text,
                "remedy": it.remedy,
            })
        };
        let check = |it: &Check| {
            json!({
                "name": it.name,
                "found": it.found,
                "problems": it.problems.iter().map(problem).collect::<Value>(),
            })
        };
        self.checks.iter().map(check).collect()
    }
}

/// Looks at this host. `socket` stands in for what the settings say.
pub async fn examine(path: &Path, socket: Option<&Path>) -> Report {
    let mut report = Report::default();
    let read = Settings::read(path);
    report.add("settings", path.display().to_string(), problem_of(&read));
    let mut settings = read.unwrap_or_default();
    if let Some(socket) = socket {
        settings.socket = socket.to_owned();
    }
    let runs = UnixStream::connect(&settings.socket).is_ok();
    let host = Host { settings, runs };
    kernel::check(&mut report).await;
    network::check(&host, &mut report).await;
    managers::check(&host, &mut report);
    state::check(&host, &mut report).await;
    report
}

fn problem_of(read: &Result<Settings, SettingsError>) -> Vec<Problem> {
    let Err(error) = read else { return Vec::new() };
    let remedy = match error {
        SettingsError::Parse { path, line, .. } => {
            format!(
                "correct that line, or leave it out: `sed -i '{line}s/^/# /' {}`; then `systemctl restart \
                 isthmus-agent`",
                path.display()
            )
        }
        SettingsError::Value { path, key, .. } => {
            format!(
                "correct it, or leave it out: `sed -i 's/^ *{key} *=/# &/' {}`; then `systemctl restart \
                 isthmus-agent`",
                path.display()
            )
        }
        SettingsError::Read { path, .. } => {
            format!("make {} readable, or name another file", path.display())
        }
    };
    let text = match std::error::Error::source(error) {
        Some(source) => format!("the agent's settings can't be used: {error}: {source}"),
        None => format!("the agent's settings can't be used: {error}"),
    };
    vec![Problem::new(Code::SettingsInvalid, text, remedy)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_wrong_are_left_out_by_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        for (text, wrong) in
            [("lanes = 1\nlisten = 5\n", "# listen = 5"), ("lanes = 1\n mtu = 4\n", "#  mtu = 4")]
        {
            std::fs::write(&path, text).unwrap();
            let problem = problem_of(&Settings::read(&path)).remove(0);
            let command = problem.remedy.split('`').nth(1).unwrap();
            let status = std::process::Command::new("sh").args(["-c", command]).status().unwrap();
            assert!(status.success(), "{command}");
            let mended = std::fs::read_to_string(&path).unwrap();
            assert!(mended.contains(wrong), "{mended}");
            assert!(problem_of(&Settings::read(&path)).is_empty(), "{mended}");
        }
    }
}
