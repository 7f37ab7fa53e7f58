//! `agentctl check`: what is wrong with this host, whether or not it has joined, whether or not its agent
//! runs. The host is looked at by `isthmus-agent check`; what only a running agent knows it is asked for.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use isthmus_model::Code;
use isthmus_proto::v1;
use isthmus_proto::v1::local_client::LocalClient;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::cli::{Check, Format};
use crate::errors::Exit;
use crate::output::{self, Tone, clean, paint, table};
use crate::problems;
use crate::programs::{AGENT, program};
use crate::status::read_mesh;
use crate::transport::{Session, ask_agent};
use crate::words::{self, count};

const DOWN: &str = "down";
const CONTROLLER: &str = "isthmus-controller";
const CONTROLLER_STATE: &str = "/var/lib/isthmus/controller";
const NO_HOST: &str = "none: this machine has the controller, and is no host of the mesh";
/// It looks at rules and processes; some hosts have very many.
const LOOKING: Duration = Duration::from_secs(30);
/// A tunnel that isn't up yet takes a handshake, which may be lost once.
const ECHO: Duration = Duration::from_secs(4);
/// Hosts that are spoken to.
const MOST_PEERS: usize = 64;

pub(crate) async fn check(session: &Session, arguments: &Check) -> Result<Exit> {
    if let Some(code) = arguments.explain {
        return explain(session, code);
    }
    if arguments.codes {
        return list(session);
    }
    let found = if program(AGENT).is_none() && program(CONTROLLER).is_some() {
        of_controller(read_mesh(session).await, Path::new(CONTROLLER_STATE))
    } else {
        let mut found = Found { looked: look(session, arguments).await, ..Found::default() };
        ask(session, &mut found).await;
        found.without_rights();
        found
    };
    output::show(session.output, || found.text(), || found.json())?;
    Ok(if found.problems().is_empty() { Exit::Success } else { Exit::Negative })
}

/// All that was found.
#[derive(Default)]
struct Found {
    /// By the agent's program: each check, or why there is none.
    looked: Vec<Looked>,
    /// The agent: how it stands, and what it says; first of all that it is down.
    agent: &'static str,
    said: Vec<v1::Problem>,
}

struct Looked {
    name: String,
    found: String,
    problems: Vec<v1::Problem>,
}

impl Found {
    /// Each once: what the agent says, it says with a time. That it is down comes first.
    fn problems(&self) -> Vec<&v1::Problem> {
        let mut all: Vec<&v1::Problem> = Vec::new();
        for problem in self.said.iter().chain(self.looked.iter().flat_map(|it| &it.problems)) {
            let same =
                |it: &&v1::Problem| (&it.code, &it.subject) == (&problem.code, &problem.subject);
            if !all.iter().any(same) {
                all.push(problem);
            }
        }
        // Why the agent is down, if that is known.
        all.sort_by_key(|it| it.code != Code::SettingsInvalid.name());
        all
    }

    fn text(&self) -> String {
        let problems = self.problems();
        let mut text = String::new();
        if !problems.is_empty() {
            let title = paint(&count(problems.len(), "fault"), Tone::Bad);
            let list = problems.iter().map(|it| ("", *it));
            text.push_str(&format!("{title}\n{}\n\n", problems::list(list, words::now())));
        }
        let state = |is_well: bool| {
            if is_well { paint("ok   ", Tone::Good) } else { paint("fault", Tone::Bad) }
        };
        for Looked { name, found, problems } in &self.looked {
            let line = clean(&format!("{name:<10} {found}"));
            text.push_str(&format!("{} {}\n", state(problems.is_empty()), line.trim_end()));
        }
        text.push_str(&format!("{} agent      {}\n", state(self.said.is_empty()), self.agent));
        if problems.is_empty() {
            let what = if self.agent == NO_HOST { "the controller" } else { "this host" };
            let well = format!("nothing is wrong with {what}");
            text.push_str(&format!("{}\n", paint(&well, Tone::Good)));
        }
        text
    }

    fn json(&self) -> Value {
        let check = |it: &Looked| json!({ "name": it.name, "found": it.found, "problems": problems::json(&it.problems) });
        let all: Vec<v1::Problem> = self.problems().into_iter().cloned().collect();
        json!({
            "agent": self.agent,
            "checks": self.looked.iter().map(check).collect::<Value>(),
            "problems": problems::json(&all),
        })
    }
}

/// Has the agent's program look at this host.
async fn look(session: &Session, arguments: &Check) -> Vec<Looked> {
    let Some(program) = program(AGENT) else { return vec![missing()] };
    let mut command = Command::new(&program);
    command.arg("check").arg("--socket").arg(session.socket());
    if let Some(settings) = &arguments.settings {
        command.arg("--settings").arg(settings);
    }
    command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let looked = async {
        let output = timeout(LOOKING, command.output()).await.context("it doesn't end")??;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{}", said.trim());
        let value: Value = serde_json::from_slice(&output.stdout)?;
        Ok(value.as_array().map(|all| all.iter().map(read).collect()).unwrap_or_default())
    };
    looked.await.unwrap_or_else(|error: anyhow::Error| {
        let text = format!("{} can't look at this host: {error:#}", program.display());
        let remedy = "install the package isthmus-agent in the version of agentctl";
        vec![Looked { problems: vec![problem(Code::AgentMissing, "", text, remedy)], ..missing() }]
    })
}

/// What can be said of a machine that has the controller, and no agent: nothing is wrong with that.
fn of_controller(status: Result<v1::MeshStatus>, state: &Path) -> Found {
    let (found, problems) = match status {
        Ok(status) => {
            let connected = status.hosts.iter().filter(|host| host.connected).count();
            let (hosts, revision) = (status.hosts.len(), status.revision);
            let found =
                format!("answers: revision {revision}, {connected} of {hosts} hosts connected");
            (found, Vec::new())
        }
        Err(error) => ("can't be asked".to_owned(), vec![unanswered(&error)]),
    };
    let key = state.join("ca.key");
    let mode = key.metadata().ok().map(|found| found.permissions().mode() & 0o777);
    let exposed = mode.filter(|mode| mode & 0o077 != 0).map(|mode| {
        let shown = key.display();
        let text = format!(
            "{shown} has mode {mode:o}: whoever reads it can make himself any host or operator"
        );
        problem(Code::KeyReadable, &shown.to_string(), text, format!("`chmod 600 {shown}`"))
    });
    let looked = |name: &str, found: String, problems: Vec<v1::Problem>| Looked {
        name: name.to_owned(),
        found,
        problems,
    };
    Found {
        looked: vec![
            looked("controller", found, problems),
            looked("state", state.display().to_string(), exposed.into_iter().collect()),
        ],
        agent: NO_HOST,
        said: Vec::new(),
    }
}

fn unanswered(error: &anyhow::Error) -> v1::Problem {
    let remedy = format!(
        "`systemctl start {CONTROLLER}`; if it doesn't stay up, `journalctl -eu {CONTROLLER}` says why; if it \
         runs, ask as root, or with an operator's --credentials"
    );
    problem(Code::ControllerUnreachable, "", format!("{error:#}"), remedy)
}

fn missing() -> Looked {
    let text = "there is no isthmus-agent on this machine: it can't be a host of a mesh";
    let remedy = "`apt-get install isthmus-agent` (or dnf)";
    Looked {
        name: "program".to_owned(),
        found: AGENT.to_owned(),
        problems: vec![problem(Code::AgentMissing, "", text, remedy)],
    }
}

fn read(value: &Value) -> Looked {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let problem = |value: &Value| v1::Problem {
        code: text(value, "code"),
        subject: text(value, "subject"),
        text: text(value, "text"),
        remedy: text(value, "remedy"),
        since: 0,
    };
    let problems = value["problems"].as_array().map(|all| all.iter().map(problem).collect());
    Looked {
        name: text(value, "name"),
        found: text(value, "found"),
        problems: problems.unwrap_or_default(),
    }
}

fn problem(
    code: Code,
    subject: &str,
    text: impl Into<String>,
    remedy: impl Into<String>,
) -> v1::Problem {
    v1::Problem {
        code: code.name().to_owned(),
        subject: subject.to_owned(),
        text: text.into(),
        remedy: remedy.into(),
        since: 0,
    }
}

/// Asks the agent what it knows, and has it speak to the other hosts.
async fn ask(session: &Session, found: &mut Found) {
    let asked = async {
        let mut agent = session.agent().await?;
        let status = ask_agent(agent.read_status(v1::ReadAgentStatusRequest {})).await?;
        anyhow::Ok((agent, status))
    };
    let (agent, status) = match timeout(LOOKING, asked).await {
        Ok(Ok(answered)) => answered,
        Ok(Err(error)) => return found.down(&format!("{error:#}")),
        Err(_) => return found.down("it doesn't answer in time"),
    };
    found.agent = if status.joined { "runs, as a member" } else { "runs, without a mesh" };
    found.said = status.problems;
    if status.joined {
        let silent = silent_peers(agent).await;
        if silent.is_empty() {
            // Whatever its rules are, they let tunnels pass.
            for looked in &mut found.looked {
                looked.problems.retain(|it| it.code != Code::FirewallTunnels.name());
            }
        }
        found.said.extend(silent.iter().map(|name| unreached(name)));
    }
}

impl Found {
    /// Without root's rights most of what was found is only that something can't be looked at.
    fn without_rights(&mut self) {
        let is_it = |problem: &v1::Problem| problem.code == Code::NotRoot.name();
        if self.looked.iter().all(|it| !it.problems.iter().any(is_it)) {
            return;
        }
        self.looked.retain_mut(|it| {
            it.problems.retain(is_it);
            !it.problems.is_empty()
        });
        self.said.clear();
        if self.agent == DOWN {
            self.agent = "can't be asked";
        }
    }

    /// Which comes first: hardly anything else matters.
    fn down(&mut self, error: &str) {
        self.agent = DOWN;
        let is_known = self
            .looked
            .iter()
            .flat_map(|it| &it.problems)
            .any(|it| it.code == Code::AgentMissing.name());
        if is_known {
            return;
        }
        let remedy = "`systemctl start isthmus-agent`; if it doesn't stay up, `journalctl -eu isthmus-agent` \
                      says why";
        let text = format!("the agent is down: {}", clean(error));
        self.said.push(problem(Code::AgentDown, "", text, remedy));
    }
}

/// The hosts that give no answer to an echo.
async fn silent_peers(mut agent: LocalClient<Channel>) -> Vec<String> {
    let peers = ask_agent(agent.list_peers(v1::ListPeersRequest {})).await;
    let peers = peers.map(|it| it.peers).unwrap_or_default();
    let hosts = peers.into_iter().filter(|peer| peer.kind == "host");
    let mut asking = JoinSet::new();
    for peer in hosts.take(MOST_PEERS) {
        let mut agent = agent.clone();
        asking.spawn(async move {
            let target = format!("host:{}", peer.name);
            let heard = timeout(ECHO, echoes(&mut agent, &target)).await.unwrap_or(false);
            (!heard).then_some(peer.name)
        });
    }
    let mut silent: Vec<String> = Vec::new();
    while let Some(answer) = asking.join_next().await {
        silent.extend(answer.ok().flatten());
    }
    silent.sort();
    silent
}

async fn echoes(agent: &mut LocalClient<Channel>, target: &str) -> bool {
    let request = v1::PingRequest { target: target.to_owned(), count: 1, interval_ms: 0 };
    let Ok(mut replies) = ask_agent(agent.ping(request)).await else { return false };
    matches!(replies.message().await, Ok(Some(reply)) if reply.microseconds.is_some())
}

fn unreached(name: &str) -> v1::Problem {
    let text =
        format!("{name} gives no answer through its tunnel: UDP doesn't pass, or it is down");
    let remedy = format!(
        "`agentctl check` on {name}, if it is on: its agent may be down, or the tunnels' UDP port not pass \
         between the two"
    );
    problem(Code::HostSilent, name, text, remedy)
}

fn explain(session: &Session, code: Code) -> Result<Exit> {
    let text = || format!("{}\n{}", paint(code.name(), Tone::Strong), code.means());
    output::show(session.output, text, || json!({ "code": code.name(), "means": code.means() }))?;
    Ok(Exit::Success)
}

fn list(session: &Session) -> Result<Exit> {
    match session.output {
        Format::Json => {
            let one = |code: &Code| json!({ "code": code.name(), "means": code.means() });
            output::json(&Code::ALL.iter().map(one).collect())?;
        }
        Format::Text => {
            let first = |code: &Code| {
                let means = code.means();
                let end = [". ", ": "].iter().filter_map(|it| means.find(it)).min();
                means[..end.unwrap_or(means.len())].trim_end_matches('.').to_owned()
            };
            let row = |code: &Code| vec![output::cell(code.name()), output::cell(first(code))];
            output::say(&table(&["CODE", "MEANS"], Code::ALL.iter().map(row).collect()))?;
        }
    }
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    fn looked(problems: Vec<v1::Problem>) -> Looked {
        Looked { name: "routes".to_owned(), found: "100.64.0.0/10".to_owned(), problems }
    }

    #[test]
    fn an_agent_that_is_down_comes_first_and_what_two_say_is_said_once() {
        let clash = problem(Code::RouteClash, "r", "a route clashes", "`ip route del r`");
        let later = v1::Problem { since: 7, ..clash.clone() };
        let found = Found {
            looked: vec![looked(vec![clash.clone()])],
            agent: "runs",
            said: vec![later.clone()],
        };
        assert_eq!(found.problems(), [&later]);
        let mut found = Found { looked: vec![looked(vec![clash])], ..Found::default() };
        found.down("no socket");
        let text = plain(&found.text());
        assert!(
            text.starts_with("2 faults\nthe agent is down: no socket (agent-down)\n"),
            "{text}"
        );
        assert!(text.contains("fault routes     100.64.0.0/10\nfault agent      down\n"), "{text}");
        assert_eq!(found.json()["problems"][1]["code"], "route-clash");
        assert_eq!(found.json()["problems"][1]["since"], Value::Null);
    }

    #[test]
    fn a_machine_without_an_agent_isnt_told_to_start_one() {
        let mut found = Found { looked: vec![missing()], ..Found::default() };
        found.down("no socket");
        let codes: Vec<&str> = found.problems().iter().map(|it| it.code.as_str()).collect();
        assert_eq!(codes, ["agent-missing"]);
    }

    #[test]
    fn the_controllers_machine_needs_no_agent() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("ca.key");
        std::fs::write(&key, "key").unwrap();
        let mode = |mode| std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode));
        mode(0o600).unwrap();
        let found = of_controller(Ok(crate::tests::mesh()), folder.path());
        assert!(found.problems().is_empty());
        let text = plain(&found.text());
        assert!(text.contains("revision 7, 1 of 2 hosts connected"), "{text}");
        assert!(text.contains("ok    agent      none: this machine has the controller"), "{text}");
        assert!(text.ends_with("nothing is wrong with the controller\n"), "{text}");
        mode(0o644).unwrap();
        let away = Err(anyhow::anyhow!("connection refused"));
        let found = of_controller(away, folder.path());
        let codes: Vec<&str> = found.problems().iter().map(|it| it.code.as_str()).collect();
        assert_eq!(codes, ["controller-unreachable", "key-readable"]);
        let text = plain(&found.text());
        for part in ["connection refused", "systemctl start isthmus-controller", "chmod 600"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_host_that_is_well_says_so() {
        let found = Found { looked: vec![looked(Vec::new())], agent: "runs", said: Vec::new() };
        assert!(plain(&found.text()).ends_with("nothing is wrong with this host\n"));
    }

    #[test]
    fn what_the_agents_program_prints_is_read() {
        let value = json!({ "name": "tun", "found": "/dev/net/tun", "problems": [
            { "code": "tun-missing", "subject": "", "text": "t", "remedy": "r" }
        ]});
        let looked = read(&value);
        assert_eq!((&*looked.name, &*looked.problems[0].code), ("tun", "tun-missing"));
    }
}
