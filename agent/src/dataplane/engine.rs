//! Engine: the state that the data plane's threads share.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{self, PoisonError};
use std::time::Instant;

use isthmus_core::{Config, Event, Node, Owners, SendError, TunWriter};
use isthmus_net::poll::Waker;
use isthmus_net::tun::{Tun, VNET_HEADER};
use isthmus_net::udp::{SendOutcome, Transmit, UdpSocket};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::Setup;
use super::alarm::Alarm;
use super::outbound::Sealer;

/// State shared by the threads: the node, the device and the sockets.
pub(super) struct Shared<O> {
    // The standard library's: its threads wait for it all the time, and parking_lot's hands it over in turn,
    // which costs 5 % more of the processor.
    engine: sync::Mutex<Engine<O>>,
    pub(super) tun: Tun,
    pub(super) sockets: Vec<Vec<UdpSocket>>,
    pub(super) mtu: u16,
    pub(super) lanes: Vec<Lane>,
    started: Instant,
    pub(super) wakers: Wakers,
    /// Loop counts of the lanes' threads, in the order of their wakers.
    pub(super) turns: Vec<AtomicU64>,
    pub(super) refused: Refused,
    stopping: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
}

/// Wakers of the threads.
pub(super) struct Wakers {
    pub(super) keeper: Waker,
    pub(super) lanes: Vec<Waker>,
}

/// What the kernel didn't take, and what of it we didn't.
#[derive(Default)]
pub(super) struct Refused {
    pub(super) busy_sends: AtomicU64,
    pub(super) frames: AtomicU64,
    pub(super) strange: AtomicU64,
}

/// State shared by the threads of a lane.
pub(super) struct Lane {
    pub(super) sealer: sync::Mutex<Sealer>,
    /// When its own thread used it last, see [`Shared::micros`].
    pub(super) sealed_at: AtomicU64,
    /// Counters of packets that the lane has read.
    pub(super) frames: AtomicU64,
    pub(super) messages: AtomicU64,
}

/// The node, and those it asks.
pub(super) struct Engine<O> {
    pub(super) node: Node,
    pub(super) owners: O,
    events: mpsc::Sender<Event>,
    alarm: Alarm,
}

/// A datagram that couldn't be sent, and why.
pub(super) type Failed = (SocketAddr, SendError);

impl Wakers {
    pub(super) fn new(lanes: usize) -> io::Result<Self> {
        let lanes: Result<_, _> = (0..lanes).map(|_| Waker::new()).collect();
        Ok(Self { keeper: Waker::new()?, lanes: lanes? })
    }
}

impl Lane {
    fn new() -> Self {
        Self {
            sealer: sync::Mutex::new(Sealer::new()),
            sealed_at: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            messages: AtomicU64::new(0),
        }
    }
}

impl<O> Shared<O> {
    pub(super) fn new(setup: Setup<O>, wakers: Wakers) -> Self {
        let Setup { tun, sockets, config, state, owners, events } = setup;
        let lanes = u8::try_from(sockets.len()).unwrap_or(u8::MAX);
        let mtu = config.mtu;
        let config = Config { coalesces: tun.offloads().tcp, lanes, ..config };
        let node = Node::new(config, state, Instant::now());
        Self {
            engine: sync::Mutex::new(Engine { node, owners, events, alarm: Alarm::default() }),
            tun,
            lanes: sockets.iter().map(|_| Lane::new()).collect(),
            started: Instant::now(),
            sockets,
            mtu,
            turns: wakers.lanes.iter().map(|_| AtomicU64::new(0)).collect(),
            wakers,
            refused: Refused::default(),
            stopping: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// A panic of another thread ends the data plane: until then its node does as well as it can.
    pub(super) fn engine(&self) -> sync::MutexGuard<'_, Engine<O>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a run of datagrams by a lane's socket. Returns what is to be told to the node.
    pub(super) fn send(
        &self,
        lane: usize,
        transmit: &isthmus_core::Transmit<'_>,
    ) -> Option<Failed> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        match send(self.sockets.get(lane).map_or(&[], Vec::as_slice), transmit) {
            SendOutcome::Sent => None,
            SendOutcome::TooBig => Some((transmit.to, SendError::TooBig { size })),
            SendOutcome::Busy => {
                self.refused.busy_sends.fetch_add(1, Ordering::Relaxed);
                None
            }
            SendOutcome::Unreachable | SendOutcome::Blocked | SendOutcome::Failed(_) => {
                Some((transmit.to, SendError::Unreachable))
            }
        }
    }

    pub(super) fn frames(&self, lane: usize) -> FrameWriter<'_> {
        FrameWriter { tun: &self.tun, lane, refused: &self.refused.frames }
    }

    /// Microseconds since the start.
    pub(super) fn micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The thread of this waker has turned.
    pub(super) fn turned(&self, waker: usize) {
        if let Some(turns) = self.turns.get(waker) {
            turns.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Makes all threads end.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.wakers.keeper.wake();
        self.wakers.lanes.iter().for_each(Waker::wake);
    }

    pub(super) fn fail(&self, error: anyhow::Error) {
        self.failure.lock().get_or_insert(error);
        self.stop();
    }

    pub(super) fn take_failure(&self) -> Option<anyhow::Error> {
        self.failure.lock().take()
    }
}

impl<O: Owners> Shared<O> {
    /// Ends a piece of work with the node: what it wants to say is said, and the keeper learns of
    /// deadlines that come sooner than it knows.
    pub(super) fn finish(&self, mut engine: sync::MutexGuard<'_, Engine<O>>) {
        self.flush(&mut engine);
        engine.tell();
        let due = engine.node.poll_timeout();
        let is_late = engine.alarm.bring_forward(due);
        drop(engine);
        if is_late {
            self.wakers.keeper.wake();
        }
    }

    /// Sends and writes whatever the node has ready.
    pub(super) fn flush(&self, engine: &mut Engine<O>) {
        let mut frames = self.frames(0);
        while let Some(packet) = engine.node.poll_tun() {
            frames.write(&[IoSlice::new(&[0; VNET_HEADER]), IoSlice::new(packet)]);
        }
        let mut failed = Vec::new();
        while let Some(transmit) = engine.node.poll_transmit() {
            failed.extend(self.send(0, &transmit));
        }
        engine.report(&mut failed);
    }
}

impl<O: Owners> Engine<O> {
    pub(super) fn report(&mut self, failed: &mut Vec<Failed>) {
        for (to, error) in failed.drain(..) {
            tracing::trace!(%to, ?error, "a datagram couldn't be sent");
            self.node.handle_send_error(to, error, Instant::now());
        }
    }

    /// Does what is due.
    pub(super) fn keep_time(&mut self, now: Instant) {
        if self.node.poll_timeout().is_some_and(|due| due <= now) {
            self.node.handle_timeout(now);
        }
    }

    /// When something will be due: until then the keeper sleeps.
    pub(super) fn set_alarm(&mut self) -> Option<Instant> {
        let due = self.node.poll_timeout();
        self.alarm.set(due);
        due
    }

    pub(super) fn tell(&mut self) {
        while let Some(event) = self.node.poll_event() {
            // Full: whoever listens is behind, and events are counted elsewhere too.
            drop(self.events.try_send(event));
        }
    }
}

/// Writes the node's frames to a queue of the device, and counts those that it doesn't take.
pub(super) struct FrameWriter<'a> {
    tun: &'a Tun,
    lane: usize,
    refused: &'a AtomicU64,
}

impl TunWriter for FrameWriter<'_> {
    fn write(&mut self, frame: &[IoSlice<'_>]) {
        if self.tun.send(self.lane, frame).is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn send(sockets: &[UdpSocket], transmit: &isthmus_core::Transmit<'_>) -> SendOutcome {
    let family = |socket: &&UdpSocket| socket.local_addr().is_ipv4() == transmit.to.is_ipv4();
    let Some(socket) = sockets.iter().find(family) else { return SendOutcome::Unreachable };
    socket.send(&Transmit {
        to: transmit.to,
        from: None,
        contents: transmit.contents,
        segment_size: transmit.segment_size,
        ecn: None,
        dont_fragment: transmit.dont_fragment,
    })
}
