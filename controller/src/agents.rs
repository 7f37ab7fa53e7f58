//! The agents that are, or were, connected: what each has accepted.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{Name, Revision};
use isthmus_proto::v1;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::authority::Membership;
use crate::time;

/// Questions that wait for an agent; they come with an operator's applies.
const QUESTIONS: usize = 4;
/// Time for which an apply waits for the agents' answers.
const PATIENCE: Duration = Duration::from_secs(1);
/// An agent that doesn't answer for so long is gone. It may be busy with a new revision.
const LIFE_SIGN: Duration = Duration::from_secs(8);

/// The resources of a slice, by key.
pub(crate) type Resources = BTreeMap<String, v1::Resource>;

/// All agents.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    table: Mutex<HashMap<Name, Agent>>,
    progress: watch::Sender<()>,
    sessions: std::sync::atomic::AtomicU64,
}

#[derive(Debug)]
struct Agent {
    membership: Membership,
    caller: Run,
    session: u64,
    /// Dropped where another connection takes this one's place.
    replaced: Option<watch::Sender<()>>,
    view: View,
    held: Option<Arc<Held>>,
    questions: mpsc::Sender<Question>,
}

/// One run of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Its number; empty where an older agent has none.
    pub(crate) instance: Vec<u8>,
    /// Its address.
    pub(crate) address: IpAddr,
    pub(crate) version: String,
    /// Whether it understands that its key is to change.
    pub(crate) makes_keys: bool,
}

/// Whether an agent's host could work by a mesh of these addresses.
#[derive(Debug)]
pub(crate) struct Question {
    /// CIDR.
    pub(crate) prefixes: Vec<String>,
    /// Takes the route that is in the way, or nothing.
    pub(crate) answer: oneshot::Sender<String>,
}

/// A host whose route leads elsewhere with some of the mesh's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clash {
    pub(crate) host: Name,
    pub(crate) route: String,
}

/// An agent, as shown to operators.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) connected: bool,
    /// When its last connection ended, in seconds since the epoch; none in this life of the controller.
    pub(crate) left: Option<i64>,
    /// Address of its last connection.
    pub(crate) address: Option<IpAddr>,
    pub(crate) version: String,
    pub(crate) makes_keys: bool,
    /// The newest revision that it works by. One that changes nothing for it isn't sent to it.
    pub(crate) accepted: Revision,
    /// The revision that it refused.
    pub(crate) refused: Option<Refusal>,
    /// What the accepted revision brings with it there.
    pub(crate) warnings: Vec<v1::Problem>,
    /// Features that its agent is too old for.
    pub(crate) lacks: Vec<v1::Problem>,
    /// Problems that the host reports.
    pub(crate) problems: Vec<v1::Problem>,
}

/// The revision that an agent refused.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) revision: Revision,
    pub(crate) reason: String,
    /// In seconds since the epoch.
    pub(crate) at: i64,
}

/// A slice that an agent has accepted: what the next delta builds on.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) revision: Revision,
    pub(crate) resources: Resources,
}

/// One connection of an agent. Dropping it says that the agent is gone.
#[derive(Debug)]
pub(crate) struct Session {
    agents: Arc<Agents>,
    name: Name,
    number: u64,
    /// Fails once another connection has taken this one's place.
    pub(crate) replaced: watch::Receiver<()>,
    /// Questions for the agent.
    pub(crate) questions: mpsc::Receiver<Question>,
}

impl Agents {
    /// An agent connects. If it was connected already, that connection is replaced.
    pub(crate) fn connect(
        self: &Arc<Self>,
        name: Name,
        membership: Membership,
        caller: Run,
    ) -> Session {
        let number = self.sessions.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (replaced, watches) = watch::channel(());
        let mut table = self.table();
        let before = table.remove(&name).filter(|agent| agent.membership == membership);
        let view = before.as_ref().map(|agent| agent.view.clone()).unwrap_or_default();
        let address = Some(caller.address);
        let Run { version, makes_keys, .. } = caller.clone();
        let view = View { connected: true, version, makes_keys, address, ..view };
        let held = before.and_then(|agent| agent.held);
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let replaced = Some(replaced);
        let agent = Agent { membership, caller, session: number, replaced, view, held, questions };
        table.insert(name.clone(), agent);
        drop(table);
        self.progress.send_replace(());
        Session { agents: Arc::clone(self), name, number, replaced: watches, questions: asked }
    }

    /// Where another run of a host's agent is connected and alive, if it is.
    pub(crate) async fn twin(
        &self,
        name: &Name,
        membership: Membership,
        instance: &[u8],
    ) -> Option<IpAddr> {
        let (answer, answered) = oneshot::channel();
        let address = {
            let table = self.table();
            let other = table.get(name).filter(|it| {
                let known = [&*it.caller.instance, instance].iter().all(|it| !it.is_empty());
                known && it.caller.instance != instance && it.membership == membership
            })?;
            other.questions.try_send(Question { prefixes: Vec::new(), answer }).ok()?;
            other.caller.address
        };
        let answered = timeout(LIFE_SIGN, answered).await;
        matches!(answered, Ok(Ok(_))).then_some(address)
    }

    /// Asks all connected agents whether `prefixes` clash with a route of their hosts. One that is
    /// away, or too slow, has its say when it gets the revision.
    pub(crate) async fn clashes_with(&self, prefixes: &[String]) -> Vec<Clash> {
        let asked: Vec<(Name, oneshot::Receiver<String>)> = self
            .table()
            .iter()
            .filter_map(|(name, agent)| {
                let (answer, answered) = oneshot::channel();
                let question = Question { prefixes: prefixes.to_vec(), answer };
                agent.questions.try_send(question).ok()?;
                Some((name.clone(), answered))
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        let mut clashes = Vec::new();
        for (host, answered) in asked {
            match timeout_at(deadline, answered).await {
                Ok(Ok(route)) if !route.is_empty() => clashes.push(Clash { host, route }),
                Ok(_) | Err(_) => {}
            }
        }
        clashes.sort_by(|one, other| one.host.cmp(&other.host));
        clashes
    }

    /// A host is no member any more.
    pub(crate) fn forget(&self, name: &str) {
        self.table().remove(name);
        self.progress.send_replace(());
    }

    pub(crate) fn view(&self, name: &Name) -> View {
        self.table().get(name).map(|agent| agent.view.clone()).unwrap_or_default()
    }

    /// Tells of every change to any [`View`].
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.progress.subscribe()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Name, Agent>> {
        self.table.lock()
    }
}

impl Session {
    /// What the agent holds, if it is what it says.
    pub(crate) fn held(&self, revision: Revision) -> Option<Arc<Held>> {
        let table = self.agents.table();
        let held = table.get(&self.name)?.held.clone()?;
        (held.revision == revision).then_some(held)
    }

    /// The agent works by this slice now.
    pub(crate) fn accepted(&self, held: Arc<Held>, warnings: Vec<v1::Problem>) {
        self.update(|agent| {
            agent.view.warnings = warnings;
            agent.view.accepted = held.revision;
            agent.view.refused = None;
            agent.held = Some(held);
        });
    }

    /// The agent says what is wrong with its host.
    pub(crate) fn troubled_by(&self, problems: Vec<v1::Problem>) {
        self.update(|agent| agent.view.problems = problems);
    }

    /// The agent goes on working by what it holds.
    pub(crate) fn refused(&self, revision: Revision, reason: String) {
        let at = time::now();
        self.update(|agent| agent.view.refused = Some(Refusal { revision, reason, at }));
    }

    /// What of the mesh the agent doesn't understand. Returns those that are new.
    pub(crate) fn lacks(&self, mut lacks: Vec<v1::Problem>) -> Vec<v1::Problem> {
        let mut new = Vec::new();
        self.update(|agent| {
            for lack in &mut lacks {
                match agent.view.lacks.iter().find(|old| old.text == lack.text) {
                    Some(old) => lack.since = old.since,
                    None => new.push(lack.clone()),
                }
            }
            agent.view.lacks = lacks;
        });
        new
    }

    /// A revision changes nothing for the agent, so that what it holds is good for it.
    pub(crate) fn up_to(&self, revision: Revision, warnings: Vec<v1::Problem>) {
        self.update(|agent| {
            // It may have accepted just this one.
            if agent.view.accepted != revision {
                agent.view.warnings = warnings;
            }
            agent.view.accepted = revision;
            agent.view.refused = None;
        });
    }

    fn update(&self, change: impl FnOnce(&mut Agent)) {
        let mut table = self.agents.table();
        let agent = table.get_mut(&self.name).filter(|agent| agent.session == self.number);
        if let Some(agent) = agent {
            change(agent);
            drop(table);
            self.agents.progress.send_replace(());
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.update(|agent| {
            agent.view.connected = false;
            agent.view.left = Some(time::now());
            agent.replaced = None;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        "app-1".parse().unwrap()
    }

    fn membership(id: u32) -> Membership {
        Membership { id: isthmus_model::HostId(id), generation: 0 }
    }

    fn run(instance: u8) -> Run {
        let address = IpAddr::from([192, 0, 2, instance]);
        Run { instance: vec![instance], address, version: String::new(), makes_keys: true }
    }

    #[test]
    fn a_newer_connection_takes_the_place_of_the_older() {
        let agents = Arc::new(Agents::default());
        let older = agents.connect(name(), membership(1), run(1));
        assert!(older.replaced.has_changed().is_ok());
        let _newer = agents.connect(name(), membership(1), run(1));
        assert!(older.replaced.has_changed().is_err());
        drop(older);
        assert!(agents.view(&name()).connected);
    }

    #[test]
    fn what_an_agent_holds_outlives_its_connection_but_not_its_membership() {
        let agents = Arc::new(Agents::default());
        let held = Arc::new(Held { revision: Revision(3), resources: Resources::new() });
        let session = agents.connect(name(), membership(1), run(1));
        session.accepted(held, Vec::new());
        drop(session);
        assert!(!agents.view(&name()).connected);
        let again = agents.connect(name(), membership(1), run(1));
        assert!(again.held(Revision(3)).is_some());
        assert!(again.held(Revision(2)).is_none());
        let rejoined = agents.connect(name(), membership(2), run(1));
        assert!(rejoined.held(Revision(3)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn another_run_is_a_twin_only_while_the_first_is_alive() {
        let agents = Arc::new(Agents::default());
        let mut first = agents.connect(name(), membership(1), run(1));
        let twin = async |number| agents.twin(&name(), membership(1), &[number]).await;
        assert_eq!(twin(1).await, None, "the same run comes back");
        assert_eq!(agents.twin(&name(), membership(1), &[]).await, None, "an older agent");
        let answers = async {
            let question = first.questions.recv().await.unwrap();
            question.answer.send(String::new()).unwrap();
        };
        let (found, ()) = tokio::join!(twin(2), answers);
        assert_eq!(found, Some(run(1).address));
        assert_eq!(twin(2).await, None, "the first doesn't answer any more");
        drop(first);
        assert_eq!(twin(2).await, None);
    }
}
