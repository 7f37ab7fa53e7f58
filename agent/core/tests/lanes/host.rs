//! A host's threads, as the agent's data plane has them: the lock is held to decide, not to seal,
//! open, send or write.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Unscheduled};
use std::time::{Duration, Instant};

use isthmus_core::sim::Kernel;
use isthmus_core::sim::host::Sockets;
use isthmus_core::{CompiledSnapshot, Inbox, Node, Outbox, Received, Sealing, Task, Transmit};
use shuttle::sync::{Mutex, MutexGuard};

use crate::ledger::Ledger;
use crate::mesh::Replays;
use crate::traffic::{Flow, Frame};
use crate::wire::{LANES, Message, Queue, Wire, messages};

/// Clock advance at each of a keeper's steps.
const TICK: Duration = Duration::from_millis(250);

/// State shared by a host's threads.
pub(crate) struct Host {
    pub(crate) engine: Mutex<Engine>,
    pub(crate) endpoint: SocketAddr,
    pub(crate) clock: Arc<Clock>,
    pub(crate) wire: Arc<Wire>,
    pub(crate) replays: Replays,
    /// Not part of what is tested: no thread stops here for another.
    pub(crate) ledger: Arc<Unscheduled<Ledger>>,
}

/// State behind the lock.
pub(crate) struct Engine {
    pub(crate) node: Node,
    pub(crate) sockets: Sockets,
    /// Flows that the revision in force no longer allows.
    pub(crate) cut: BTreeSet<Flow>,
}

/// Goes when a keeper says so.
pub(crate) struct Clock {
    start: Instant,
    passed: AtomicU64,
}

/// Actions of a keeper.
pub(crate) enum Step {
    /// Time passes.
    Tick,
    /// A revision that doesn't allow some flows any more.
    Switch(Arc<CompiledSnapshot>, BTreeSet<Flow>),
}

impl Clock {
    pub(crate) const fn new(start: Instant) -> Self {
        Self { start, passed: AtomicU64::new(0) }
    }

    pub(crate) fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.passed.load(Ordering::Relaxed))
    }

    pub(crate) fn tick(&self) {
        self.passed.fetch_add(TICK.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Host {
    /// A lane that reads these batches from its queue of the device.
    pub(crate) fn outbound(&self, lane: u8, batches: Vec<Vec<Frame>>) {
        let mut outbox = Outbox::new(usize::MAX);
        for mut batch in batches {
            let sealings = self.decide(lane, &mut batch, &mut outbox);
            self.seal(&sealings, &batch, &mut outbox);
        }
    }

    fn decide(&self, lane: u8, batch: &mut [Frame], outbox: &mut Outbox) -> Vec<(usize, Sealing)> {
        let now = self.clock.now();
        let mut sealings = Vec::new();
        let mut engine = self.engine();
        for at in 0..batch.len() {
            let Engine { node, sockets, cut } = &mut *engine;
            let Some(frame) = batch.get_mut(at) else { continue };
            let (had_own, sent) = (node.has_passed(), node.counters().sent.packets);
            let task = node.decide_tun(lane, frame.offload, &mut frame.packet, sockets, now);
            let sent = node.counters().sent.packets - sent;
            assert!(sent == 0 || !cut.contains(&frame.flow), "{:?} after it was cut", frame.flow);
            self.note(frame, sent);
            match task {
                Some(Task::Seal(sealing)) => {
                    if had_own {
                        self.flush(&mut engine);
                    }
                    sealings.push((at, sealing));
                }
                Some(Task::Write(_)) => unreachable!("all flows lead to the other host"),
                None if engine.node.has_passed() => {
                    self.seal(&std::mem::take(&mut sealings), batch, outbox);
                }
                None => {}
            }
        }
        self.flush(&mut engine);
        sealings
    }

    fn note(&self, frame: &Frame, sent: u64) {
        let mut ledger = self.ledger.lock().expect("no panic");
        ledger.offer(frame.flow, frame.count);
        ledger.decide(frame.flow, sent as usize);
    }

    fn seal(&self, sealings: &[(usize, Sealing)], batch: &[Frame], outbox: &mut Outbox) {
        for (at, sealing) in sealings {
            assert_eq!(sealing.seal(&batch[*at].packet, outbox), 0);
            while let Some(transmit) = outbox.poll_full() {
                self.send(&transmit);
            }
        }
        while let Some(transmit) = outbox.poll() {
            self.send(&transmit);
        }
    }

    /// A lane that reads what comes by its socket.
    pub(crate) fn inbound(&self, lane: usize) {
        let (mut inbox, mut kernel) = (Inbox::default(), Kernel::default());
        loop {
            let messages = self.queue(lane).take();
            if messages.is_empty() {
                return;
            }
            self.pass(messages, &mut inbox, &mut kernel);
        }
    }

    pub(crate) fn pass(&self, mut messages: Vec<Message>, inbox: &mut Inbox, kernel: &mut Kernel) {
        let received = messages.iter_mut().map(|message| Received {
            from: message.from,
            contents: &mut message.contents,
            segment_size: message.segment_size,
        });
        let mut received: Vec<Received<'_>> = received.collect();
        self.engine().node.find_keys(inbox, &received);
        inbox.open(&mut received);
        let mut engine = self.engine();
        let Engine { node, sockets, cut } = &mut *engine;
        let cut = cut.clone();
        node.decide_udp(inbox, &mut received, sockets, self.clock.now());
        self.flush(&mut engine);
        drop(engine);
        inbox.write(&received, kernel);
        let mut ledger = self.ledger.lock().expect("no panic");
        for packet in kernel.inbox.drain(..) {
            let flow = ledger.arrive(&packet);
            assert!(flow.is_none_or(|flow| !cut.contains(&flow)), "{flow:?} after it was cut");
        }
    }

    pub(crate) fn keeper(&self, steps: Vec<Step>) {
        for step in steps {
            self.clock.tick();
            let mut engine = self.engine();
            let now = self.clock.now();
            match step {
                Step::Tick => {
                    if engine.node.poll_timeout().is_some_and(|due| due <= now) {
                        engine.node.handle_timeout(now);
                    }
                }
                Step::Switch(state, cut) => {
                    engine.node.handle_state(state, now);
                    engine.cut = cut;
                }
            }
            self.flush(&mut engine);
        }
    }

    pub(crate) fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().expect("no panic")
    }

    pub(crate) fn queue(&self, lane: usize) -> &Queue {
        &self.wire.queues[&self.endpoint][lane]
    }

    fn flush(&self, engine: &mut Engine) {
        // Answers to what was refused.
        while engine.node.poll_tun().is_some() {}
        while let Some(transmit) = engine.node.poll_transmit() {
            self.send(&transmit);
        }
        while engine.node.poll_event().is_some() {}
    }

    fn send(&self, transmit: &Transmit<'_>) {
        let messages = messages(self.endpoint, transmit);
        let mut ledger = self.ledger.lock().expect("no panic");
        for (_, message) in &messages {
            for datagram in message.contents.chunks(message.segment_size) {
                ledger.carry(self.endpoint, transmit.to, datagram);
                if self.replays == Replays::ByTheOtherLane {
                    *ledger.replayed.entry(transmit.to).or_default() += 1;
                }
            }
        }
        drop(ledger);
        // A host without queues only listens.
        let Some(queues) = self.wire.queues.get(&transmit.to) else { return };
        for (lane, message) in messages {
            if self.replays == Replays::ByTheOtherLane {
                queues[(lane + 1) % LANES].push(message.clone());
            }
            queues[lane].push(message);
        }
    }
}
