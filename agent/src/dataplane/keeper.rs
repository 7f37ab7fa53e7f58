//! Time, and what the control plane wants.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use anyhow::Context as _;
use isthmus_core::{DropReason, Owners, TunWriter as _};
use isthmus_net::poll::{Events, Interest, Poller, Waker};
use isthmus_net::tun::{VNET_HEADER, device_drops};
use isthmus_net::udp::UdpSocket;

use super::engine::{Engine, Lane, Shared};
use super::handle::{Command, Keys, Ping};
use super::{LaneLoad, Listed, Sample};

/// The thread that keeps time.
pub(super) struct Keeper<O> {
    shared: Arc<Shared<O>>,
    poller: Poller,
    commands: Receiver<Command>,
}

impl<O: Owners> Keeper<O> {
    pub(super) fn new(shared: Arc<Shared<O>>, commands: Receiver<Command>) -> anyhow::Result<Self> {
        let poller = Poller::new().context("Failed to make an epoll instance")?;
        poller
            .add(&shared.wakers.keeper, 0, Interest::READ)
            .context("Failed to watch the waker")?;
        Ok(Self { shared, poller, commands })
    }

    /// Returns when it's told to stop, or when another thread has failed.
    pub(super) fn run(&mut self) -> anyhow::Result<()> {
        let mut ready = Events::with_capacity(1);
        loop {
            let mut engine = self.shared.engine();
            engine.keep_time(Instant::now());
            self.shared.flush(&mut engine);
            engine.tell();
            let due = engine.set_alarm();
            drop(engine);
            let wait = due.map(|due| due.saturating_duration_since(Instant::now()));
            self.poller.wait(&mut ready, wait).context("Failed to wait")?;
            self.shared.wakers.keeper.drain();
            if self.shared.is_stopping() || !self.obey() {
                return Ok(());
            }
        }
    }

    /// Whether to go on.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            let mut engine = self.shared.engine();
            let now = Instant::now();
            // Whoever asked may have gone: their loss.
            match command {
                Command::Switch(state, reply) => {
                    engine.node.handle_state(state, now);
                    self.shared.flush(&mut engine);
                    let _ = reply.send(());
                }
                Command::Keys(Keys(key, second), reply) => {
                    engine.node.handle_keys(&key, second.as_deref());
                    let _ = reply.send(());
                }
                Command::Flows(limit, reply) => {
                    let (flows, total) = (engine.node.flows(limit, now), engine.node.flow_count());
                    let state = Arc::clone(engine.node.state());
                    drop(reply.send(Listed { flows, total, state }));
                }
                Command::Sample(reply) => {
                    let mut sample = self.sample(&engine, now);
                    drop(engine);
                    self.add_device_drops(&mut sample);
                    drop(reply.send(sample));
                }
                Command::Ping(ping, reply) => {
                    let Ping { target, identifier, sequence } = ping;
                    let _ = reply.send(engine.node.ping(target, identifier, sequence, now));
                }
                Command::Turns(reply) => {
                    drop(engine);
                    // Before they are woken, or the turns of this time might be counted already.
                    let turns = self.shared.turns.iter().map(|it| it.load(Ordering::Relaxed));
                    drop(reply.send(turns.collect()));
                    self.shared.wakers.lanes.iter().for_each(Waker::wake);
                }
                Command::Moved => {
                    engine.node.handle_moved(now);
                    self.shared.flush(&mut engine);
                }
                Command::Deaf(deaf) => engine.node.handle_deaf(deaf),
                Command::Write(packet) => {
                    let frame = [IoSlice::new(&[0; VNET_HEADER]), IoSlice::new(&packet)];
                    self.shared.frames(0).write(&frame);
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn sample(&self, engine: &Engine<O>, now: Instant) -> Sample {
        let refused = &self.shared.refused;
        let mut counters = engine.node.counters().clone();
        engine.owners.add_drops(&mut counters);
        Sample {
            counters,
            flows: engine.node.flow_count(),
            peers: engine.node.peers(now),
            lanes: self.shared.lanes.iter().map(load).collect(),
            mtu: self.shared.mtu,
            gso: self.shared.sockets.iter().flatten().all(UdpSocket::gso_enabled),
            send_busy: refused.busy_sends.load(Ordering::Relaxed),
            tun_refused: refused.frames.load(Ordering::Relaxed),
            tun_strange: refused.strange.load(Ordering::Relaxed),
            offloads: Some(self.shared.tun.offloads()),
        }
    }

    /// Packets that the kernel dropped at the device.
    fn add_device_drops(&self, sample: &mut Sample) {
        let Some(drops) = device_drops(self.shared.tun.name()) else { return };
        sample.counters.drop_many(DropReason::DeviceQueue, drops.sent);
        sample.counters.drop_many(DropReason::DeviceInput, drops.received);
    }
}

fn load(lane: &Lane) -> LaneLoad {
    LaneLoad {
        frames: lane.frames.load(Ordering::Relaxed),
        messages: lane.messages.load(Ordering::Relaxed),
    }
}
