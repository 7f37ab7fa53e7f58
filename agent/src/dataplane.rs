//! The data plane's thread: it owns the TUN device, the tunnel sockets and the node, and carries
//! bytes between them. The node decides; this file never looks into a packet.
//!
//! The thread sleeps in epoll over the device, the sockets and a waker. The control plane speaks
//! to it through a bounded queue of commands and hears from it through a bounded queue of events;
//! neither side ever waits for the other's queue.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context as _, anyhow};
use isthmus_core::packet::Offload;
use isthmus_core::{
    Config, Counters, Event, FlowView, Node, Owners, PeerView, Received, SendError, State,
    TunWriter,
};
use isthmus_model::HostId;
use isthmus_net::poll::{Events, Interest, Poller, Waker};
use isthmus_net::tun::{FRAME_BYTES_MAX, Offloads, Tun, VNET_HEADER};
use isthmus_net::udp::{Message, RecvBatch, SendOutcome, Transmit, UdpSocket};
use tokio::sync::{mpsc, oneshot};

const TUN: u64 = 0;
const WAKER: u64 = 1;
const FIRST_SOCKET: u64 = 2;

/// Packets read from the device before what they led to is sent: enough for large segments,
/// little enough to keep the sockets from overflowing meanwhile.
const TUN_BATCH: usize = 64;
/// Likewise in bytes: what comes in meanwhile waits for it.
const TUN_BATCH_BYTES: usize = 128 << 10;
/// Flows and status are asked for by people.
const COMMANDS: usize = 64;

/// What the thread works with.
#[derive(Debug)]
pub struct Setup<O> {
    pub tun: Tun,
    /// One per family that the host speaks.
    pub sockets: Vec<UdpSocket>,
    pub config: Config,
    pub state: Arc<State>,
    pub owners: O,
    /// Where the node's events go; what doesn't fit is lost.
    pub events: mpsc::Sender<Event>,
}

/// Everything that metrics and status want to know.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub counters: Counters,
    pub flows: usize,
    pub peers: Vec<PeerView>,
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

/// Flows, and the state whose rules they name.
#[derive(Clone, Debug)]
pub struct Listed {
    pub flows: Vec<FlowView>,
    pub total: usize,
    pub state: Arc<State>,
}

enum Command {
    Switch(Arc<State>, oneshot::Sender<()>),
    Flows(usize, oneshot::Sender<Listed>),
    Sample(oneshot::Sender<Sample>),
    Ping(Ping, oneshot::Sender<Option<HostId>>),
    Moved,
    Stop,
}

/// What [`Handle::ping`] asks for; it comes back in the event.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    pub target: IpAddr,
    pub identifier: u16,
    pub sequence: u16,
}

/// The control plane's end.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: SyncSender<Command>,
    waker: Waker,
}

/// Starts the thread. The data plane ends when the thread is told to stop, and takes the device
/// with it; `on_failure` is called if it ends for another reason.
///
/// # Errors
/// When the thread can't be made.
pub fn start<O: Owners + Send + 'static>(
    setup: Setup<O>,
    on_failure: impl FnOnce(anyhow::Error) + Send + 'static,
) -> anyhow::Result<(Handle, JoinHandle<()>)> {
    let waker = Waker::new().context("Failed to make an eventfd")?;
    let (sender, commands) = sync_channel(COMMANDS);
    let handle = Handle { commands: sender, waker: waker.clone() };
    let mut plane = DataPlane::new(setup, commands, waker)?;
    let thread = std::thread::Builder::new()
        .name("dataplane".to_owned())
        .spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(|| plane.run()));
            match ended.unwrap_or_else(|_| Err(anyhow!("a bug: the thread panicked"))) {
                Ok(()) => {}
                Err(error) => on_failure(error),
            }
        })
        .context("Failed to start the data plane's thread")?;
    Ok((handle, thread))
}

impl Handle {
    /// Makes `state` the revision in force; returns when it is.
    ///
    /// # Errors
    /// When the data plane is gone.
    pub async fn switch(&self, state: Arc<State>) -> anyhow::Result<()> {
        self.ask(|reply| Command::Switch(state, reply)).await
    }

    /// Up to `limit` flows, and how many there are.
    ///
    /// # Errors
    /// When the data plane is gone or busy.
    pub async fn flows(&self, limit: usize) -> anyhow::Result<Listed> {
        self.ask(|reply| Command::Flows(limit, reply)).await
    }

    /// Counters and peers.
    ///
    /// # Errors
    /// When the data plane is gone or busy.
    pub async fn sample(&self) -> anyhow::Result<Sample> {
        self.ask(Command::Sample).await
    }

    /// Sends an echo; the answer comes as an event. Tells which host is asked.
    ///
    /// # Errors
    /// When the data plane is gone or busy.
    pub async fn ping(&self, ping: Ping) -> anyhow::Result<Option<HostId>> {
        self.ask(|reply| Command::Ping(ping, reply)).await
    }

    /// This host has other addresses now.
    pub fn moved(&self) {
        // A full queue: there is more to do than to speed up roaming.
        if self.commands.try_send(Command::Moved).is_ok() {
            self.waker.wake();
        }
    }

    /// Tells the thread to end.
    pub fn stop(&self) {
        // A full queue is emptied in a moment: the thread never blocks.
        drop(self.commands.send(Command::Stop));
        self.waker.wake();
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> anyhow::Result<T> {
        let (reply, answer) = oneshot::channel();
        match self.commands.try_send(command(reply)) {
            Ok(()) => self.waker.wake(),
            Err(TrySendError::Full(_)) => return Err(anyhow!("The data plane is busy; try again")),
            Err(TrySendError::Disconnected(_)) => {
                return Err(anyhow!("The data plane has stopped"));
            }
        }
        answer.await.context("The data plane has stopped")
    }
}

struct DataPlane<O> {
    node: Node,
    owners: O,
    tun: Tun,
    sockets: Vec<UdpSocket>,
    poller: Poller,
    waker: Waker,
    commands: Receiver<Command>,
    events: mpsc::Sender<Event>,
    buffers: Buffers,
    send_busy: u64,
    tun_refused: u64,
    tun_strange: u64,
}

struct Buffers {
    frame: Vec<u8>,
    batch: RecvBatch,
}

impl<O: Owners> DataPlane<O> {
    fn new(setup: Setup<O>, commands: Receiver<Command>, waker: Waker) -> anyhow::Result<Self> {
        let poller = Poller::new().context("Failed to make an epoll instance")?;
        poller.add(&setup.tun, TUN, Interest::READ).context("Failed to watch the TUN device")?;
        poller.add(&waker, WAKER, Interest::READ).context("Failed to watch the waker")?;
        for (token, socket) in (FIRST_SOCKET..).zip(&setup.sockets) {
            poller.add(socket, token, Interest::READ).context("Failed to watch a socket")?;
        }
        let coalesces = setup.tun.offloads().tcp;
        let config = Config { coalesces, ..setup.config };
        Ok(Self {
            node: Node::new(config, setup.state, Instant::now()),
            owners: setup.owners,
            tun: setup.tun,
            sockets: setup.sockets,
            poller,
            waker,
            commands,
            events: setup.events,
            buffers: Buffers { frame: vec![0; FRAME_BYTES_MAX], batch: RecvBatch::new() },
            send_busy: 0,
            tun_refused: 0,
            tun_strange: 0,
        })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut ready = Events::with_capacity(8);
        loop {
            let wait =
                self.node.poll_timeout().map(|at| at.saturating_duration_since(Instant::now()));
            self.poller.wait(&mut ready, wait).context("Failed to wait for packets")?;
            for event in ready.iter() {
                match event.token {
                    TUN => self.read_tun().context("The overlay's device is gone")?,
                    WAKER => {
                        if !self.obey() {
                            return Ok(());
                        }
                    }
                    socket => self.read_socket(socket),
                }
            }
            self.keep_time();
            self.flush();
            self.tell();
        }
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        if self.node.poll_timeout().is_some_and(|at| at <= now) {
            self.node.handle_timeout(now);
        }
    }

    fn read_tun(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let mut bytes = 0;
        for _ in 0..TUN_BATCH {
            if bytes >= TUN_BATCH_BYTES {
                break;
            }
            let length = match self.tun.recv(&mut self.buffers.frame) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            bytes += length;
            let frame = &mut self.buffers.frame[..length];
            let Ok((offload, packet)) = Offload::read(frame) else {
                self.tun_strange += 1;
                continue;
            };
            self.node.handle_tun(offload, packet, &mut self.owners, now);
            self.transmit(Node::poll_full_transmit);
        }
        self.flush();
        Ok(())
    }

    fn read_socket(&mut self, token: u64) {
        let at = usize::try_from(token - FIRST_SOCKET).unwrap_or(usize::MAX);
        let Some(socket) = self.sockets.get(at) else { return };
        // An error that an ICMP message left on the socket is taken by reading it.
        if socket.recv(&mut self.buffers.batch).is_err() {
            return;
        }
        let now = Instant::now();
        let mut tun = FrameWriter { tun: &self.tun, refused: &mut self.tun_refused };
        for message in self.buffers.batch.messages() {
            let Message { from, contents, segment_size, .. } = message;
            let received = Received { from, contents, segment_size };
            self.node.handle_udp(received, &mut self.owners, &mut tun, now);
        }
        self.flush();
    }

    /// Sends and writes whatever the node has ready.
    fn flush(&mut self) {
        let mut tun = FrameWriter { tun: &self.tun, refused: &mut self.tun_refused };
        while let Some(packet) = self.node.poll_tun() {
            tun.write(&[IoSlice::new(&[0; VNET_HEADER]), IoSlice::new(packet)]);
        }
        self.transmit(Node::poll_transmit);
    }

    fn transmit(
        &mut self,
        poll: impl for<'a> Fn(&'a mut Node) -> Option<isthmus_core::Transmit<'a>>,
    ) {
        let mut failed = Vec::new();
        while let Some(transmit) = poll(&mut self.node) {
            let size = transmit.segment_size.unwrap_or(transmit.contents.len());
            match send(&self.sockets, &transmit) {
                SendOutcome::Sent => {}
                SendOutcome::TooBig => failed.push((transmit.to, SendError::TooBig { size })),
                SendOutcome::Busy => self.send_busy += 1,
                SendOutcome::Unreachable | SendOutcome::Blocked | SendOutcome::Failed(_) => {
                    failed.push((transmit.to, SendError::Unreachable));
                }
            }
        }
        if !failed.is_empty() {
            self.report(failed);
        }
    }

    fn report(&mut self, failed: Vec<(SocketAddr, SendError)>) {
        let now = Instant::now();
        for (to, error) in failed {
            tracing::trace!(%to, ?error, "a datagram couldn't be sent");
            self.node.handle_send_error(to, error, now);
        }
    }

    fn tell(&mut self) {
        while let Some(event) = self.node.poll_event() {
            // Full: whoever listens is behind, and events are counted elsewhere too.
            drop(self.events.try_send(event));
        }
    }

    /// Whether to go on.
    fn obey(&mut self) -> bool {
        self.waker.drain();
        while let Ok(command) = self.commands.try_recv() {
            let now = Instant::now();
            // Whoever asked may have gone: their loss.
            match command {
                Command::Switch(state, reply) => {
                    self.node.handle_state(state, now);
                    self.flush();
                    let _ = reply.send(());
                }
                Command::Flows(limit, reply) => {
                    let (flows, total) = (self.node.flows(limit, now), self.node.flow_count());
                    let state = Arc::clone(self.node.state());
                    drop(reply.send(Listed { flows, total, state }));
                }
                Command::Sample(reply) => drop(reply.send(self.sample(now))),
                Command::Ping(ping, reply) => {
                    let Ping { target, identifier, sequence } = ping;
                    let _ = reply.send(self.node.ping(target, identifier, sequence, now));
                }
                Command::Moved => {
                    self.node.handle_moved(now);
                    self.flush();
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn sample(&self, now: Instant) -> Sample {
        Sample {
            counters: self.node.counters().clone(),
            flows: self.node.flow_count(),
            peers: self.node.peers(now),
            gso: self.sockets.iter().all(UdpSocket::gso_enabled),
            send_busy: self.send_busy,
            tun_refused: self.tun_refused,
            tun_strange: self.tun_strange,
            offloads: Some(self.tun.offloads()),
        }
    }
}

/// Writes the node's frames to the device, and counts those that it doesn't take.
struct FrameWriter<'a> {
    tun: &'a Tun,
    refused: &'a mut u64,
}

impl TunWriter for FrameWriter<'_> {
    fn write(&mut self, frame: &[IoSlice<'_>]) {
        if self.tun.send(frame).is_err() {
            *self.refused += 1;
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
