//! From the TUN device to the tunnels, or back to the device.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use isthmus_core::{Outbox, Owners, Task};
use isthmus_net::poll::{Events, Interest, Poller, Waker};
use isthmus_net::tun::{FRAME_BYTES_MAX, VNET_HEADER};
use isthmus_packet::Offload;

use super::engine::{Engine, Failed, Shared};

/// Frames of one batch, and what they may weigh: a large super-packet, or as many small packets as
/// make a run.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 1 << 16;

const WAKER: u64 = u64::MAX;

/// Time after its last batch for which a thread counts as busy.
const AWAKE: Duration = Duration::from_micros(500);

/// A thread that seals.
pub(super) struct Outbound<O> {
    shared: Arc<Shared<O>>,
    lane: usize,
    poller: Poller,
}

/// What comes out of a lane's queue of the device, and becomes of it. Whoever holds it is the only
/// one to read the queue and to send what was read: that keeps packets in order.
pub(super) struct Sealer {
    batch: Batch,
    work: Work,
}

/// Frames as they were read.
struct Batch {
    bytes: Vec<u8>,
    frames: Vec<Range<usize>>,
}

/// Decisions not carried out yet, in order.
struct Work {
    tasks: Vec<(Range<usize>, Task)>,
    outbox: Outbox,
    failed: Vec<Failed>,
}

impl<O: Owners> Outbound<O> {
    pub(super) fn new(shared: Arc<Shared<O>>, lane: usize) -> anyhow::Result<Self> {
        let poller = Poller::new().context("Failed to make an epoll instance")?;
        let queue = shared.tun.queue(lane).context("Failed to find a queue of the TUN device")?;
        poller.add(&queue, 0, Interest::READ).context("Failed to watch the TUN device")?;
        let waker = shared.wakers.lanes.get(2 * lane).context("Failed to find a waker")?;
        poller.add(waker, WAKER, Interest::READ).context("Failed to watch a waker")?;
        Ok(Self { shared, lane, poller })
    }

    pub(super) fn run(&mut self) -> anyhow::Result<()> {
        let mut ready = Events::with_capacity(2);
        while !self.shared.is_stopping() {
            self.shared.turned(2 * self.lane);
            if !self.pass().context("The overlay's device is gone")? {
                self.poller.wait(&mut ready, None).context("Failed to wait for packets")?;
                if ready.iter().any(|event| event.token == WAKER) {
                    self.shared.wakers.lanes.get(2 * self.lane).map(Waker::drain);
                }
            }
        }
        Ok(())
    }

    fn pass(&self) -> io::Result<bool> {
        let Some(lane) = self.shared.lanes.get(self.lane) else { return Ok(false) };
        let mut sealer = lane.sealer.lock().unwrap_or_else(PoisonError::into_inner);
        let has_passed = sealer.pass(&self.shared, self.lane)?;
        if has_passed {
            lane.sealed_at.store(self.shared.micros(), Ordering::Relaxed);
        }
        Ok(has_passed)
    }
}

/// Passes on what the kernel has answered at once to what was written just now, as long as the
/// thread whose work that is has none: an answer needn't wait until it wakes up.
pub(super) fn pass_answers<O: Owners>(shared: &Shared<O>, lane: usize) {
    let number = lane;
    let Some(lane) = shared.lanes.get(number) else { return };
    let sealed_at = lane.sealed_at.load(Ordering::Relaxed);
    if shared.micros().saturating_sub(sealed_at) < AWAKE.as_micros() as u64 {
        return;
    }
    if let Ok(mut sealer) = lane.sealer.try_lock() {
        // Its own thread meets with the same error, and says so.
        drop(sealer.pass(shared, number));
    }
}

impl Sealer {
    pub(super) fn new() -> Self {
        Self {
            batch: Batch { bytes: vec![0; BATCH_BYTES + FRAME_BYTES_MAX], frames: Vec::new() },
            work: Work { tasks: Vec::new(), outbox: Outbox::new(usize::MAX), failed: Vec::new() },
        }
    }

    /// Reads a batch and passes it on. False if there was nothing to read.
    fn pass<O: Owners>(&mut self, shared: &Shared<O>, lane: usize) -> io::Result<bool> {
        if !self.read(shared, lane)? {
            return Ok(false);
        }
        self.decide(shared, lane);
        self.work.run(shared, lane, &self.batch);
        self.work.report(shared);
        Ok(true)
    }

    fn read<O>(&mut self, shared: &Shared<O>, lane: usize) -> io::Result<bool> {
        let Batch { bytes, frames } = &mut self.batch;
        frames.clear();
        let mut end = 0;
        while frames.len() < BATCH && end < BATCH_BYTES {
            match shared.tun.recv(lane, &mut bytes[end..end + FRAME_BYTES_MAX]) {
                Ok(length) => {
                    frames.push(end..end + length);
                    end += length;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(lane) = shared.lanes.get(lane) {
            lane.frames.fetch_add(frames.len() as u64, Ordering::Relaxed);
        }
        Ok(!frames.is_empty())
    }

    /// Has the node decide about the batch.
    ///
    /// What it seals or writes itself, on flows' slow way, stays in order with the rest: both are done
    /// as far as they are before the other goes on.
    fn decide<O: Owners>(&mut self, shared: &Shared<O>, lane: usize) {
        let number = u8::try_from(lane).unwrap_or_default();
        let mut engine = shared.engine();
        // Not before: for the node, time never goes backwards.
        let now = Instant::now();
        for at in 0..self.batch.frames.len() {
            let range = self.batch.frames[at].clone();
            let Ok((offload, packet)) = Offload::read(&mut self.batch.bytes[range.clone()]) else {
                shared.refused.strange.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let Engine { node, owners, .. } = &mut *engine;
            let had_own = node.has_passed();
            let task = node.decide_tun(number, offload, packet, owners, now);
            match task {
                Some(task) => {
                    if had_own {
                        shared.flush(&mut engine);
                    }
                    self.work.tasks.push((range, task));
                }
                None if engine.node.has_passed() => {
                    self.work.run(shared, lane, &self.batch);
                }
                None => {}
            }
        }
        shared.finish(engine);
    }
}

impl Work {
    /// Seals and sends, or writes.
    fn run<O>(&mut self, shared: &Shared<O>, lane: usize, batch: &Batch) {
        for (range, task) in self.tasks.drain(..) {
            let packet = batch.bytes.get(range).and_then(|frame| frame.get(VNET_HEADER..));
            let packet = packet.unwrap_or_default();
            match task {
                Task::Seal(sealing) => {
                    // The outbox takes anything: nothing is lost.
                    sealing.seal(packet, &mut self.outbox);
                    while let Some(transmit) = self.outbox.poll_full() {
                        self.failed.extend(shared.send(lane, &transmit));
                    }
                }
                Task::Write(hairpin) => hairpin.write(packet, &mut shared.frames(lane)),
            }
        }
        while let Some(transmit) = self.outbox.poll() {
            self.failed.extend(shared.send(lane, &transmit));
        }
    }

    fn report<O: Owners>(&mut self, shared: &Shared<O>) {
        if !self.failed.is_empty() {
            let mut engine = shared.engine();
            engine.report(&mut self.failed);
            shared.finish(engine);
        }
    }
}
