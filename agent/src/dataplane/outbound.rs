//! From the TUN device to the tunnels.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Context as _;
use isthmus_core::packet::Offload;
use isthmus_core::{Outbox, Owners, Sealing};
use isthmus_net::poll::{Events, Interest, Poller};
use isthmus_net::tun::{FRAME_BYTES_MAX, VNET_HEADER};

use super::engine::{Engine, Failed, Shared};

/// Frames of one batch, and what they may weigh: a large super-packet, or as many small packets as
/// make a run.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 1 << 16;

/// A thread that seals.
pub(super) struct Outbound<O> {
    shared: Arc<Shared<O>>,
    lane: usize,
    poller: Poller,
    batch: Batch,
    work: Work,
}

/// Frames as they were read.
struct Batch {
    bytes: Vec<u8>,
    frames: Vec<Range<usize>>,
}

/// What was decided and not done yet, in order.
struct Work {
    sealings: Vec<(Range<usize>, Sealing)>,
    outbox: Outbox,
    failed: Vec<Failed>,
}

impl<O: Owners> Outbound<O> {
    pub(super) fn new(shared: Arc<Shared<O>>, lane: usize) -> anyhow::Result<Self> {
        let poller = Poller::new().context("Failed to make an epoll instance")?;
        let queue = shared.tun.queue(lane).context("Failed to find a queue of the TUN device")?;
        poller.add(&queue, 0, Interest::READ).context("Failed to watch the TUN device")?;
        let waker = shared.wakers.lanes.get(2 * lane).context("Failed to find a waker")?;
        poller.add(waker, 1, Interest::READ).context("Failed to watch a waker")?;
        Ok(Self {
            shared,
            lane,
            poller,
            batch: Batch { bytes: vec![0; BATCH_BYTES + FRAME_BYTES_MAX], frames: Vec::new() },
            work: Work {
                sealings: Vec::new(),
                outbox: Outbox::new(usize::MAX),
                failed: Vec::new(),
            },
        })
    }

    pub(super) fn run(&mut self) -> anyhow::Result<()> {
        let mut ready = Events::with_capacity(2);
        while !self.shared.is_stopping() {
            if self.read().context("The overlay's device is gone")? {
                if let Some(lane) = self.shared.lanes.get(self.lane) {
                    lane.frames.fetch_add(self.batch.frames.len() as u64, Ordering::Relaxed);
                }
                self.decide();
                self.work.run(&self.shared, self.lane, &self.batch);
                self.work.report(&self.shared);
            } else {
                self.poller.wait(&mut ready, None).context("Failed to wait for packets")?;
            }
        }
        Ok(())
    }

    /// Reads a batch. False if there was nothing to read.
    fn read(&mut self) -> io::Result<bool> {
        let Batch { bytes, frames } = &mut self.batch;
        frames.clear();
        let mut end = 0;
        while frames.len() < BATCH && end < BATCH_BYTES {
            match self.shared.tun.recv(self.lane, &mut bytes[end..end + FRAME_BYTES_MAX]) {
                Ok(length) => {
                    frames.push(end..end + length);
                    end += length;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(!frames.is_empty())
    }

    /// Has the node decide about the batch.
    ///
    /// What it seals itself, on flows' slow way, stays in order with the rest: both are done as far
    /// as they are before the other goes on.
    fn decide(&mut self) {
        let now = Instant::now();
        let lane = u8::try_from(self.lane).unwrap_or_default();
        let mut engine = self.shared.engine();
        for at in 0..self.batch.frames.len() {
            let range = self.batch.frames[at].clone();
            let Ok((offload, packet)) = Offload::read(&mut self.batch.bytes[range.clone()]) else {
                self.shared.refused.strange.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let Engine { node, owners, .. } = &mut *engine;
            let had_own = node.has_transmit();
            let sealing = node.decide_tun(lane, offload, packet, owners, now);
            match sealing {
                Some(sealing) => {
                    if had_own {
                        self.shared.flush(&mut engine);
                    }
                    self.work.sealings.push((range, sealing));
                }
                None if engine.node.has_transmit() => {
                    self.work.run(&self.shared, self.lane, &self.batch);
                }
                None => {}
            }
        }
        self.shared.finish(engine);
    }
}

impl Work {
    /// Seals and sends.
    fn run<O>(&mut self, shared: &Shared<O>, lane: usize, batch: &Batch) {
        for (range, sealing) in self.sealings.drain(..) {
            let packet = batch.bytes.get(range).and_then(|frame| frame.get(VNET_HEADER..));
            // The outbox takes anything: nothing is lost.
            sealing.seal(packet.unwrap_or_default(), &mut self.outbox);
            while let Some(transmit) = self.outbox.poll_full() {
                self.failed.extend(shared.send(lane, &transmit));
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
