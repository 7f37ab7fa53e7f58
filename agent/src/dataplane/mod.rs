//! The data plane's threads, which carry bytes between the TUN device, the tunnel sockets and the
//! node. The node decides; nothing here ever looks into a packet.
//!
//! ```text
//!             read a batch ─▶ decide ─▶ seal, send            outbound, one per lane
//!   TUN  ───────────────────▶ ┌──────┐ ──────────────▶  UDP
//!        ◀─────────────────── │ node │ ◀──────────────
//!             write       ◀─  └──────┘ ◀─ open ◀─ read a batch  inbound, one per lane
//!                                 ▲
//!                                 │  commands, time              keeper
//! ```
//!
//! All threads share one node, and its lock is held while it decides, once or twice a batch: never
//! while bytes are copied, sealed or opened, nor in a system call, as long as flows go their fast
//! way. Decisions are some hundredths of the work, so that threads rarely meet. A single flow keeps
//! two threads busy, one per direction, and any thread can take any packet.
//!
//! The keeper owns time and the control plane's commands. It never waits for the control plane's
//! queues, nor does the control plane for its.

mod alarm;
mod engine;
mod handle;
mod inbound;
mod keeper;
mod outbound;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use anyhow::{Context as _, anyhow};
use isthmus_core::{CompiledSnapshot, Config, Counters, Event, FlowView, Owners, PeerView};
use isthmus_net::tun::{Offloads, Tun};
use isthmus_net::udp::UdpSocket;
use tokio::sync::mpsc;

use engine::{Shared, Wakers};
use handle::Asked;
pub(crate) use handle::{Handle, Ping};
use inbound::Inbound;
use keeper::Keeper;
use outbound::Outbound;

/// Configuration of the threads.
#[derive(Debug)]
pub(crate) struct Setup<O> {
    pub tun: Tun,
    /// Of each lane: one per family that the host speaks.
    pub sockets: Vec<Vec<UdpSocket>>,
    pub config: Config,
    pub state: Arc<CompiledSnapshot>,
    pub owners: O,
    /// Channel for the node's events; events that don't fit are lost.
    pub events: mpsc::Sender<Event>,
}

/// Everything that metrics and status want to know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub counters: Counters,
    pub flows: usize,
    pub peers: Vec<PeerView>,
    pub lanes: Vec<LaneLoad>,
    /// Of the device.
    pub mtu: u16,
    /// Whether each socket still sends in batches.
    pub gso: bool,
    /// Datagrams that the kernel had no room for.
    pub send_busy: u64,
    /// Packets that the device didn't take.
    pub tun_refused: u64,
    /// Frames of the device that weren't understood.
    pub tun_strange: u64,
    /// What the device's kernel leaves to us.
    pub offloads: Option<Offloads>,
}

/// Counters of a lane's reads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LaneLoad {
    /// Of the device.
    pub frames: u64,
    /// Of its sockets; a message holds one datagram or many.
    pub messages: u64,
}

/// Flows, and the state whose rules they name.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub flows: Vec<FlowView>,
    pub total: usize,
    pub state: Arc<CompiledSnapshot>,
}

/// Starts the threads. The data plane ends when it's told to stop, and takes the device with it;
/// `on_failure` is called if it ends for another reason.
///
/// # Errors
/// When a thread, or what it sleeps by, can't be made.
pub(crate) fn start<O: Owners + Send + 'static>(
    setup: Setup<O>,
    on_failure: impl FnOnce(anyhow::Error) + Send + 'static,
) -> anyhow::Result<(Handle, JoinHandle<()>)> {
    let lanes = setup.sockets.len();
    let wakers = Wakers::new(2 * lanes).context("Failed to make an eventfd")?;
    let waker = wakers.keeper.clone();
    let shared = Arc::new(Shared::new(setup, wakers));
    let node = Arc::downgrade(&shared);
    let asked =
        Asked(Arc::new(move |own, caller| node.upgrade()?.engine().node.asked_port(own, caller)));
    let (handle, commands) = Handle::new(waker, asked);
    let mut keeper = Keeper::new(Arc::clone(&shared), commands)?;
    let mut threads = Vec::new();
    for lane in 0..lanes {
        let mut outbound = Outbound::new(Arc::clone(&shared), lane)?;
        threads.push(spawn("outbound", &shared, move || outbound.run())?);
        let mut inbound = Inbound::new(Arc::clone(&shared), lane)?;
        threads.push(spawn("inbound", &shared, move || inbound.run())?);
    }
    let thread = spawn("keeper", &Arc::clone(&shared), move || {
        let ended = keeper.run();
        shared.stop();
        for thread in threads {
            // What it died of is kept in `shared`.
            drop(thread.join());
        }
        if let Some(error) = ended.err().or_else(|| shared.take_failure()) {
            on_failure(error);
        }
        Ok(())
    })?;
    Ok((handle, thread))
}

/// Starts a thread whose failure ends the data plane.
fn spawn<O: Send + 'static>(
    name: &str,
    shared: &Arc<Shared<O>>,
    run: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let work = move || {
        let ended = catch_unwind(AssertUnwindSafe(run));
        let ended = ended.unwrap_or_else(|_| Err(anyhow!("a bug: a thread panicked")));
        if let Err(error) = ended {
            shared.fail(error);
        }
    };
    let thread = Builder::new().name(name.to_owned()).spawn(work);
    thread.context("Failed to start a thread of the data plane")
}
