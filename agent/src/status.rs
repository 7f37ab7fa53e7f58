//! Shared agent state: status, and handles of the parts.
//!
//! One value, shared by all, that nobody holds for long: every method takes or copies and returns.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use isthmus_core::CompiledSnapshot;
use isthmus_model::{HostId, Problems, ServiceId};
use isthmus_proto::v1;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::callers::Callers;
use crate::containers::Containers;
use crate::dataplane;
use crate::identity::{Member, Validity};
use crate::own_ports::OwnPorts;
use crate::owners::{OwnerCounters, SharedCgroups, SharedSenders};
use crate::settings::Settings;
use crate::telemetry::{Exported, Windows};

/// Peers and addresses that forgeries are remembered of, until the controller is told.
const FORGERIES: usize = 1024;
/// Pings under way at once.
const PINGS: usize = 256;

/// State shared by all parts of the agent.
#[derive(Debug)]
pub(crate) struct Shared {
    pub settings: Settings,
    /// Of this run of the agent, at random: tells it from one on a copy of this machine.
    pub instance: [u8; 16],
    pub cgroups: SharedCgroups,
    pub senders: SharedSenders,
    pub owners: Arc<OwnerCounters>,
    pub callers: Arc<Callers>,
    pub proxy: Arc<isthmus_proxy::Metrics>,
    pub windows: Windows,
    pub spans: Exported,
    pub pings: Pings,
    pub ports: OwnPorts,
    pub containers: Containers,
    /// Problems of this host.
    pub problems: Problems,
    /// What others took away of the overlay's network, and was put back.
    pub restored: AtomicU64,
    status: watch::Sender<Status>,
    forgeries: Mutex<BTreeMap<(HostId, IpAddr), u64>>,
    packets: Mutex<Option<dataplane::Handle>>,
    failed: watch::Sender<Option<String>>,
}

/// Status of the agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    /// Identity of this host, once it has joined.
    pub member: Option<Member>,
    pub certificate: Option<Validity>,
    /// The controller that it is connected to, or tried last.
    pub controller: String,
    pub connected: bool,
    /// Why it isn't connected, or doesn't work by what it was sent.
    pub last_error: String,
    /// Whether a controller with another CA answered there.
    pub is_foreign: bool,
    /// Why the last snapshot isn't worked by; empty when it is.
    pub refusal: String,
    /// When the controller last confirmed the snapshot.
    pub confirmed: Option<SystemTime>,
    /// Snapshot that the data plane runs.
    pub state: Option<Arc<CompiledSnapshot>>,
    pub proxy: String,
    pub dns: String,
    /// Where the applications of services here listen, in a few words.
    pub listening: BTreeMap<(ServiceId, u16), String>,
    /// Listeners of gateways here, and external services with problems.
    pub gateways: Vec<v1::GatewayStatus>,
}

impl Status {
    /// How old the knowledge of the mesh is: while the controller is connected it is fresh.
    #[must_use]
    pub(crate) fn snapshot_age(&self, now: SystemTime) -> Duration {
        match self.confirmed {
            Some(at) if !self.connected => now.duration_since(at).unwrap_or_default(),
            Some(_) | None => Duration::ZERO,
        }
    }

    /// One line for people: what `systemctl status` shows.
    #[must_use]
    pub(crate) fn summary(&self) -> String {
        let Some(member) = &self.member else {
            return match self.last_error.as_str() {
                "" => "Not a member of a mesh: join with `agentctl join TOKEN`".to_owned(),
                error => format!("Not a member of a mesh: {error}"),
            };
        };
        let revision = match &self.state {
            Some(state) => format!("revision {}", state.revision()),
            None => "no snapshot yet".to_owned(),
        };
        let controller = if self.connected { "connected" } else { "no controller" };
        format!("{} of mesh {}, {revision}, {controller}", member.host, member.mesh)
    }
}

impl Shared {
    #[must_use]
    pub(crate) fn new(settings: Settings, cgroups: SharedCgroups) -> Arc<Self> {
        let mut instance = [0; 16];
        // Where there is no randomness there are no keys either.
        let _ = getrandom::fill(&mut instance);
        let ports = OwnPorts::of(&settings);
        Arc::new(Self {
            settings,
            instance,
            cgroups,
            senders: SharedSenders::default(),
            owners: Arc::default(),
            callers: Arc::default(),
            proxy: Arc::default(),
            windows: Windows::new(),
            spans: Exported::default(),
            pings: Pings::default(),
            ports,
            containers: Containers::default(),
            problems: Problems::default(),
            restored: AtomicU64::new(0),
            status: watch::Sender::new(Status::default()),
            forgeries: Mutex::default(),
            packets: Mutex::default(),
            failed: watch::Sender::new(None),
        })
    }

    /// Current status of the agent.
    #[must_use]
    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(crate) fn show_listening(&self, listening: BTreeMap<(ServiceId, u16), String>) {
        if self.status.borrow().listening != listening {
            self.update(|status| status.listening = listening);
        }
    }

    /// To wait for changes of the status.
    #[must_use]
    pub(crate) fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    /// Snapshot that the data plane runs, if there is one.
    #[must_use]
    pub(crate) fn state(&self) -> Option<Arc<CompiledSnapshot>> {
        self.status.borrow().state.clone()
    }

    /// The data plane, if there is one.
    #[must_use]
    pub(crate) fn packets(&self) -> Option<dataplane::Handle> {
        self.packets.lock().clone()
    }

    pub(crate) fn set_packets(&self, handle: Option<dataplane::Handle>) {
        *self.packets.lock() = handle;
    }

    pub(crate) fn note_forgery(&self, from: HostId, source: IpAddr, packets: u64) {
        let mut forgeries = self.forgeries.lock();
        if forgeries.len() < FORGERIES || forgeries.contains_key(&(from, source)) {
            *forgeries.entry((from, source)).or_default() += packets;
        }
    }

    pub(crate) fn take_forgeries(&self) -> Vec<v1::Forgery> {
        let taken = std::mem::take(&mut *self.forgeries.lock());
        let message = |((from, source), packets): ((HostId, IpAddr), u64)| v1::Forgery {
            from_host: from.0,
            claimed_source: source.to_string(),
            packets,
        };
        taken.into_iter().map(message).collect()
    }

    /// Something without which the agent is of no use has failed.
    pub(crate) fn fail(&self, error: &anyhow::Error) {
        self.failed.send_replace(Some(format!("{error:#}")));
    }

    /// Waits for [`Shared::fail`].
    pub(crate) async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender is part of `self`.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Callers that wait for echoes, by token.
#[derive(Debug, Default)]
pub(crate) struct Pings {
    waiting: Mutex<HashMap<(u16, u16), oneshot::Sender<Pong>>>,
    identifiers: AtomicU16,
}

/// An echo that came back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pong {
    pub from: HostId,
    pub round_trip: Duration,
}

impl Pings {
    /// A number for the echoes of one caller.
    #[must_use]
    pub(crate) fn identifier(&self) -> u16 {
        self.identifiers.fetch_add(1, Ordering::Relaxed)
    }

    /// To wait for one echo; `None` when too many do so already.
    #[must_use]
    pub(crate) fn expect(&self, identifier: u16, sequence: u16) -> Option<oneshot::Receiver<Pong>> {
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, sender| !sender.is_closed());
        if waiting.len() >= PINGS {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        waiting.insert((identifier, sequence), sender);
        Some(receiver)
    }

    pub(crate) fn answer(&self, identifier: u16, sequence: u16, pong: Pong) {
        if let Some(sender) = self.waiting.lock().remove(&(identifier, sequence)) {
            // Gone: it came too late.
            let _ = sender.send(pong);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Arc<Shared> {
        Shared::new(Settings::default(), SharedCgroups::default())
    }

    #[test]
    fn forgeries_add_up_until_they_are_taken() {
        let shared = shared();
        let source = "fd00::1".parse().unwrap();
        shared.note_forgery(HostId(3), source, 2);
        shared.note_forgery(HostId(3), source, 5);
        let taken = shared.take_forgeries();
        assert_eq!(taken.len(), 1);
        assert_eq!((taken[0].from_host, taken[0].packets), (3, 7));
        assert_eq!(shared.take_forgeries(), []);
    }

    #[test]
    fn a_flood_of_forged_addresses_is_bounded() {
        let shared = shared();
        for number in 0..10_000_u32 {
            shared.note_forgery(HostId(1), std::net::Ipv4Addr::from(number).into(), 1);
        }
        assert_eq!(shared.take_forgeries().len(), FORGERIES);
    }

    #[test]
    fn an_echo_reaches_who_waits_for_it() {
        let pings = Pings::default();
        let pong = Pong { from: HostId(2), round_trip: Duration::from_millis(3) };
        let mut waiting = pings.expect(1, 1).unwrap();
        pings.answer(1, 2, pong);
        assert!(waiting.try_recv().is_err());
        pings.answer(1, 1, pong);
        assert_eq!(waiting.try_recv().unwrap().from, HostId(2));
    }

    #[test]
    fn pings_that_nobody_waits_for_make_room() {
        let pings = Pings::default();
        let held: Vec<_> = (0..256).map(|n| pings.expect(1, n).unwrap()).collect();
        assert!(pings.expect(2, 0).is_none());
        drop(held);
        assert!(pings.expect(2, 0).is_some());
    }

    #[test]
    fn a_snapshot_ages_only_while_the_controller_is_away() {
        let now = SystemTime::now();
        let confirmed = Some(now - Duration::from_secs(60));
        let away = Status { confirmed, ..Status::default() };
        assert_eq!(away.snapshot_age(now), Duration::from_secs(60));
        let connected = Status { connected: true, ..away };
        assert_eq!(connected.snapshot_age(now), Duration::ZERO);
    }
}
