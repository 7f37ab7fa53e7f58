//! Checks of the agent's state directory, and of the way to its controllers.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use isthmus_model::{Code, Problem};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Host, Report};
use crate::membership::state_not_writable;
use crate::state_dir::{StateDir, exposed};
use crate::vitals::readable;

const PROBE: &str = "check";
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn check(host: &Host, report: &mut Report) {
    let folder = &host.settings.state_dir;
    let mut problems: Vec<Problem> = exposed(folder).iter().map(|it| readable(it)).collect();
    if folder.exists()
        && let Err(error) = try_writing(folder)
    {
        problems.push(state_not_writable(folder, &error.into()));
    }
    report.add("state", folder.display().to_string(), problems);
    let member = StateDir::peek_member(folder);
    let found = match &member {
        Ok(Some(member)) => format!("{} of {}", member.host, member.mesh),
        Ok(None) | Err(_) => "none".to_owned(),
    };
    report.add(
        "mesh",
        found,
        match &member {
            Ok(Some(_)) => Vec::new(),
            Ok(None) => vec![not_a_member()],
            Err(error) => vec![damaged(folder, error)],
        },
    );
    // An agent that runs says so itself.
    if let Ok(Some(member)) = &member
        && !host.runs
    {
        let mut reached = None;
        let mut failed = Vec::new();
        for address in &member.controllers {
            match reach(address).await {
                Ok(()) => reached = Some(address.clone()),
                Err(error) => failed.push(format!("{address} ({error})")),
            }
        }
        let problem =
            (reached.is_none() && !failed.is_empty()).then(|| unreachable(&failed.join(", ")));
        report.add(
            "controller",
            reached.unwrap_or_default(),
            problem.into_iter().collect::<Vec<_>>(),
        );
    }
}

fn try_writing(folder: &Path) -> io::Result<()> {
    let probe = folder.join(PROBE);
    fs::write(&probe, [0; 4096])?;
    fs::remove_file(probe)
}

async fn reach(address: &str) -> io::Result<()> {
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(connected) => connected.map(drop),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")),
    }
}

fn not_a_member() -> Problem {
    let text = "this host is in no mesh";
    let remedy = "`agentctl join -` with a token that an operator made (`agentctl token create`)";
    Problem::new(Code::NotAMember, text, remedy)
}

fn damaged(folder: &Path, error: &anyhow::Error) -> Problem {
    let text = format!("what is kept of this host's mesh can't be read: {error:#}");
    let remedy = format!(
        "restore {} from a backup; or remove it, and join again with a token for this host (`agentctl token \
         create --host NAME`)",
        folder.display()
    );
    Problem::new(Code::NotAMember, text, remedy)
}

fn unreachable(failed: &str) -> Problem {
    let text = format!("no controller is reached: {failed}");
    let remedy = "on the controller's machine: `systemctl start isthmus-controller`; if it runs, let TCP 7443 \
                  pass from here to there";
    Problem::new(Code::ControllerUnreachable, text, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_controller_that_nobody_is_is_told_from_one_that_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        reach(&address).await.unwrap();
        drop(listener);
        assert!(reach(&address).await.is_err());
    }
}
