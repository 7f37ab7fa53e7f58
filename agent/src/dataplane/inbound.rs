//! From the tunnels to the TUN device.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Context as _;
use isthmus_core::{Inbox, Owners, Received};
use isthmus_net::poll::{Events, Interest, Poller, Waker};
use isthmus_net::udp::{BATCH_SIZE, Message, RecvBatch};

use super::engine::{Engine, Shared};
use super::outbound::pass_answers;

const WAKER: u64 = u64::MAX;
/// What is opened, decided and written in one go: it should stay in the processor's cache.
const PORTION_BYTES: usize = 1 << 16;
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// A thread that opens.
pub(super) struct Inbound<O> {
    shared: Arc<Shared<O>>,
    lane: usize,
    poller: Poller,
    batch: RecvBatch,
    inbox: Inbox,
}

impl<O: Owners> Inbound<O> {
    pub(super) fn new(shared: Arc<Shared<O>>, lane: usize) -> anyhow::Result<Self> {
        let poller = Poller::new().context("Failed to make an epoll instance")?;
        for (token, socket) in (0..).zip(shared.sockets.get(lane).into_iter().flatten()) {
            poller.add(socket, token, Interest::READ).context("Failed to watch a socket")?;
        }
        let waker = shared.wakers.lanes.get(2 * lane + 1).context("Failed to find a waker")?;
        poller.add(waker, WAKER, Interest::READ).context("Failed to watch a waker")?;
        Ok(Self { shared, lane, poller, batch: RecvBatch::new(), inbox: Inbox::default() })
    }

    pub(super) fn run(&mut self) -> anyhow::Result<()> {
        let mut ready = Events::with_capacity(4);
        while !self.shared.is_stopping() {
            self.shared.turned(2 * self.lane + 1);
            self.poller.wait(&mut ready, None).context("Failed to wait for packets")?;
            for event in ready.iter() {
                if event.token == WAKER {
                    self.shared.wakers.lanes.get(2 * self.lane + 1).map(Waker::drain);
                } else {
                    self.read(usize::try_from(event.token).unwrap_or(usize::MAX));
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, socket: usize) {
        let Some(socket) = self.shared.sockets.get(self.lane).and_then(|all| all.get(socket))
        else {
            return;
        };
        // An error that an ICMP message left on the socket is taken by reading it.
        if socket.recv(&mut self.batch).is_err() {
            return;
        }
        let count = self.batch.len();
        if let Some(lane) = self.shared.lanes.get(self.lane) {
            lane.messages.fetch_add(count as u64, Ordering::Relaxed);
        }
        let mut messages = self.batch.messages();
        let mut received: [Received<'_>; BATCH_SIZE] = std::array::from_fn(|_| {
            messages.next().map_or_else(
                nothing,
                |Message { from, contents, segment_size, .. }| Received {
                    from,
                    contents,
                    segment_size,
                },
            )
        });
        let mut rest = received.get_mut(..count).unwrap_or_default();
        while !rest.is_empty() {
            let (portion, others) = rest.split_at_mut(portion(rest));
            rest = others;
            pass(&self.shared, self.lane, &mut self.inbox, portion);
        }
        pass_answers(&self.shared, self.lane);
    }
}

fn pass<O: Owners>(
    shared: &Shared<O>,
    lane: usize,
    inbox: &mut Inbox,
    received: &mut [Received<'_>],
) {
    shared.engine().node.find_keys(inbox, received);
    inbox.open(received);
    let mut engine = shared.engine();
    let Engine { node, owners, .. } = &mut *engine;
    node.decide_udp(inbox, received, owners, Instant::now());
    shared.finish(engine);
    inbox.write(received, &mut shared.frames(lane));
}

/// Number of messages per portion: at least one.
fn portion(received: &[Received<'_>]) -> usize {
    let mut bytes = 0;
    let full = received.iter().position(|message| {
        bytes += message.contents.len();
        bytes >= PORTION_BYTES
    });
    full.map_or(received.len(), |last| last + 1)
}

fn nothing<'a>() -> Received<'a> {
    Received { from: NOWHERE, contents: &mut [], segment_size: 1 }
}
