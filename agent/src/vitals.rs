//! Problems that this host's own figures show: looked at every few seconds.
//!
//! Whoever can say at once that something failed raises the problem where that happens. Here is what only
//! shows over time, or in what several parts say.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_core::{DropReason, PeerName};
use isthmus_model::{Audited, Code, Problem, ServiceId, Snapshot};
use isthmus_proxy::KeyFailure;

use crate::dataplane::Sample;
use crate::state_dir::StateDir;
use crate::status::{Shared, Status};
use crate::words::peer_name;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A controller that restarts is back before that.
const LOST: Duration = Duration::from_secs(10);
/// What was dropped or turned away is told for so long after the last time.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Overhead of a tunnel over IPv6, added to IPv6's minimum MTU.
const LEAST_PATH: u16 = 1_280 + 80;

/// Looks for ever.
pub(crate) async fn watch(shared: Arc<Shared>, disk: Arc<StateDir>) -> Infallible {
    let mut vitals = Vitals::default();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let (looking, sharing) = (Arc::clone(&disk), Arc::clone(&shared));
        let exposed = tokio::task::spawn_blocking(move || {
            if sharing.packets().is_some() {
                sharing.ports.tell_again(&sharing.settings, &sharing.problems);
            }
            looking.exposed()
        })
        .await;
        shared
            .problems
            .replace(Code::KeyReadable, exposed.unwrap_or_default().iter().map(|it| readable(it)));
        let sample = match shared.packets() {
            Some(packets) => packets.sample().await.ok(),
            None => None,
        };
        vitals.look(&shared, sample.as_ref(), Instant::now());
    }
}

#[derive(Default)]
struct Vitals {
    /// Since when there is no controller.
    alone: Option<Instant>,
    queue: Growth,
    turned_away: Growth,
}

impl Vitals {
    fn look(&mut self, shared: &Shared, sample: Option<&Sample>, now: Instant) {
        let (problems, status) = (&shared.problems, shared.status());
        problems.set(Code::RevisionRefused, refused(&status));
        let no_controller = self.no_controller(&status, now);
        for code in [Code::ControllerForeign, Code::ControllerUnreachable] {
            problems.set(code, no_controller.clone().filter(|it| it.code == code));
        }
        let snapshot = status.state.as_ref().map(|state| &state.snapshot);
        let audits = snapshot.map(|it| it.rules.audits()).unwrap_or_default();
        problems.replace(Code::Audit, audits.iter().map(Audited::problem));
        let ties = snapshot.map_or_else(Vec::new, |snapshot| {
            let ties = shared.owners.ties(snapshot.revision);
            ties.into_iter().filter_map(|tie| tied(snapshot, tie)).collect()
        });
        problems.replace(Code::SelectorTie, ties);
        look_for_keys(shared, status.state.is_some());
        let turned_away = shared.proxy.snapshot().refused_connections;
        problems.set(
            Code::ProxyPlaces,
            self.turned_away.note(turned_away, now).map(turned_away_problem),
        );
        let dropped = sample.map_or(0, |it| it.counters.dropped(DropReason::DeviceQueue));
        let device = &shared.settings.device;
        problems.set(
            Code::DeviceQueueFull,
            self.queue.note(dropped, now).map(|it| queue_full(it, device)),
        );
        let narrow = sample.into_iter().flat_map(|sample| &sample.peers).filter_map(|peer| {
            let state = status.state.as_ref()?;
            let is_narrow = peer.path_mtu != 0 && peer.path_mtu < LEAST_PATH;
            let is_host = matches!(peer.peer, PeerName::Host(_));
            let name = (is_narrow && is_host).then(|| peer_name(state, peer.peer))?;
            Some(narrow(&name, peer.path_mtu))
        });
        problems.replace(Code::PathNarrow, narrow);
    }

    /// One that was only just lost may restart.
    fn no_controller(&mut self, status: &Status, now: Instant) -> Option<Problem> {
        if status.connected || status.member.is_none() {
            self.alone = None;
            return None;
        }
        let since = *self.alone.get_or_insert(now);
        let make = if status.is_foreign { foreign } else { unreachable };
        (now.duration_since(since) >= LOST).then(|| make(status))
    }
}

fn unreachable(status: &Status) -> Problem {
    let why = match status.last_error.as_str() {
        "" => String::new(),
        error => format!(": {error}"),
    };
    let address = &status.controller;
    let port = address.rsplit(':').next().unwrap_or("7443");
    let text = format!("the controller at {address} isn't reached{why}; {}", goes_on(status));
    let remedy = format!(
        "on the controller's machine: `systemctl start isthmus-controller`; if it runs, let TCP \
         {port} pass from here to there"
    );
    Problem::new(Code::ControllerUnreachable, text, remedy)
}

fn foreign(status: &Status) -> Problem {
    let text = format!("{}; {}", status.last_error, goes_on(status));
    let remedy = format!(
        "see which controller answers at {}. If this mesh's was set up anew, restore its state \
         directory from a backup; without one, `agentctl leave` here, then `agentctl join -` with \
         a token of the new one. If it is another mesh's, give the address back to this mesh's",
        status.controller
    );
    Problem::new(Code::ControllerForeign, text, remedy)
}

fn goes_on(status: &Status) -> String {
    format!(
        "traffic goes on by revision {}",
        status.state.as_ref().map_or(0, |state| state.revision().0)
    )
}

/// A counter that should stand still.
#[derive(Default)]
struct Growth {
    last: u64,
    /// Since it began to grow: by how much, and when it did last.
    spell: Option<(u64, Instant)>,
}

impl Growth {
    /// By how much it grew in this spell, if there is one. A counter that began anew isn't less.
    fn note(&mut self, value: u64, now: Instant) -> Option<u64> {
        let more = value.checked_sub(self.last).unwrap_or(value);
        self.last = value;
        if more > 0 {
            let before = self.spell.map_or(0, |(by, _)| by);
            self.spell = Some((before + more, now));
        }
        self.spell = self.spell.filter(|(_, at)| now.duration_since(*at) < REMEMBERED);
        self.spell.map(|(by, _)| by)
    }
}

fn refused(status: &Status) -> Option<Problem> {
    (!status.refusal.is_empty()).then(|| {
        let text = format!("this host refused the newest revision: {}", status.refusal);
        let remedy = "mend that, and the revision is taken by itself; or have the topology changed";
        Problem::new(Code::RevisionRefused, text, remedy)
    })
}

/// Tells which keys of tokens can't be had.
pub(crate) fn look_for_keys(shared: &Shared, is_up: bool) {
    let failures = if is_up { shared.proxy.key_failures() } else { Vec::new() };
    shared.problems.replace(Code::KeysMissing, failures.iter().map(keys_missing));
}

fn keys_missing(failure: &KeyFailure) -> Problem {
    let KeyFailure { source, error, kept } = failure;
    let costs = if *kept {
        "keys from before stay in use"
    } else {
        "tokens can't be verified, and requests with one are refused"
    };
    let text = format!("the keys at {source} can't be had: {error}; {costs}");
    let remedy = format!(
        "see `curl -v {source}` here, or correct `jwks` of the [jwt] table; it is tried again by itself"
    );
    Problem::new(Code::KeysMissing, text, remedy).about(source.to_string())
}

fn turned_away_problem(connections: u64) -> Problem {
    let text = format!(
        "the proxy had no place for {connections} connections: whoever came has his share already, or \
         all places are taken"
    );
    let remedy = "see who has most: `ss -Htn state established | awk '{print $4}' | sort | uniq -c | sort -n | tail`; \
                  close theirs, or serve by more hosts";
    Problem::new(Code::ProxyPlaces, text, remedy)
}

/// None where the topology has no such services any more.
fn tied(snapshot: &Snapshot, (winner, other): (ServiceId, ServiceId)) -> Option<Problem> {
    let name = |id| snapshot.services.get(&id).map(|service| service.name.as_str());
    let (winner, other) = (name(winner)?, name(other)?);
    let text = format!(
        "a process here fits the workloads of services {winner} and {other} equally well, and speaks as \
         {winner}"
    );
    let remedy = format!(
        "tell them apart by another selector in `workload` of [service.{winner}] or [service.{other}], such \
         as `user` or `exe`; `agentctl whois PID` says what fits"
    );
    Some(Problem::new(Code::SelectorTie, text, remedy).about(format!("{winner} {other}")))
}

fn queue_full(packets: u64, device: &str) -> Problem {
    let text = format!(
        "{packets} packets were dropped because the queue of {device} was full: the agent came after too \
         slowly"
    );
    let remedy = format!(
        "`ip link set {device} txqueuelen 5000` takes longer bursts (until the agent restarts); more \
         `lanes` in its settings take more packets, where there are processors"
    );
    Problem::new(Code::DeviceQueueFull, text, remedy)
}

fn narrow(host: &str, bytes: u16) -> Problem {
    let text = format!(
        "the path to {host} carries {bytes} bytes only: packets of IPv6's least size go out in fragments"
    );
    let remedy = format!(
        "find the link that is too narrow (`tracepath -n ADDRESS`; here: `ip link`), and give it an MTU of \
         {LEAST_PATH} or more"
    );
    Problem::new(Code::PathNarrow, text, remedy).about(host)
}

/// That others can read a key.
#[must_use]
pub(crate) fn readable(file: &Path) -> Problem {
    let shown = file.display();
    let what = if file.is_dir() { "the state directory" } else { "a private key's file" };
    let mode = if file.is_dir() { 700 } else { 600 };
    let text = format!("{shown}, {what}, may be read by others than its owner");
    Problem::new(Code::KeyReadable, text, format!("`chmod {mode} {shown}`"))
        .about(shown.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grew_is_told_for_a_while_and_a_counter_may_begin_anew() {
        let (mut growth, now) = (Growth::default(), Instant::now());
        assert_eq!(growth.note(0, now), None);
        assert_eq!(growth.note(3, now), Some(3));
        assert_eq!(growth.note(5, now + REMEMBERED / 2), Some(5));
        assert_eq!(growth.note(5, now + REMEMBERED), Some(5), "since the last time");
        assert_eq!(growth.note(5, now + 2 * REMEMBERED), None);
        assert_eq!(growth.note(2, now + 2 * REMEMBERED), Some(2), "another life of the data plane");
    }

    #[test]
    fn a_controller_that_restarts_is_no_problem_and_one_that_stays_away_is() {
        let (mut vitals, now) = (Vitals::default(), Instant::now());
        let member = Some(crate::identity::tests::member());
        let away = Status {
            member,
            controller: "10.9.0.1:7443".to_owned(),
            last_error: "connection refused".to_owned(),
            ..Status::default()
        };
        assert_eq!(vitals.no_controller(&away, now), None);
        let problem = vitals.no_controller(&away, now + LOST).unwrap();
        assert!(
            problem.text.contains("10.9.0.1:7443 isn't reached: connection refused"),
            "{problem:?}"
        );
        assert!(problem.remedy.contains("TCP 7443"), "{problem:?}");
        let back = Status { connected: true, ..away.clone() };
        assert_eq!(vitals.no_controller(&back, now + LOST), None);
        assert_eq!(vitals.no_controller(&away, now + LOST), None, "from anew");
        assert_eq!(vitals.no_controller(&Status::default(), now + 9 * LOST), None, "no member");
    }

    #[test]
    fn a_controller_of_another_ca_isnt_to_be_started() {
        let (mut vitals, now) = (Vitals::default(), Instant::now());
        let foreign = Status {
            member: Some(crate::identity::tests::member()),
            controller: "10.9.0.1:7443".to_owned(),
            last_error: "signed by another CA".to_owned(),
            is_foreign: true,
            ..Status::default()
        };
        assert_eq!(vitals.no_controller(&foreign, now), None);
        let problem = vitals.no_controller(&foreign, now + LOST).unwrap();
        assert_eq!(problem.code, Code::ControllerForeign);
        assert!(problem.text.starts_with("signed by another CA"), "{problem:?}");
        for part in ["10.9.0.1:7443", "`agentctl leave`", "`agentctl join -`", "backup"] {
            assert!(problem.remedy.contains(part), "{part}: {problem:?}");
        }
        assert!(!problem.remedy.contains("systemctl start"), "{problem:?}");
    }

    #[test]
    fn services_that_one_process_fits_are_named_with_a_remedy() {
        let state = crate::local::show::tests::state();
        let service = |name: &str| {
            let found = state.snapshot.services.iter().find(|(_, it)| it.name.as_str() == name);
            *found.unwrap().0
        };
        let problem = tied(&state.snapshot, (service("web"), service("here"))).unwrap();
        assert_eq!((problem.code, &*problem.subject), (Code::SelectorTie, "web here"));
        assert!(problem.text.ends_with("speaks as web"), "{problem:?}");
        assert!(problem.remedy.contains("[service.here]"), "{problem:?}");
        assert_eq!(tied(&state.snapshot, (service("web"), ServiceId(999))), None);
    }

    #[test]
    fn a_key_that_others_can_read_is_named_with_the_command() {
        let problem = readable(Path::new("/var/lib/isthmus/agent/tls.pem"));
        assert_eq!(problem.remedy, "`chmod 600 /var/lib/isthmus/agent/tls.pem`");
    }
}
