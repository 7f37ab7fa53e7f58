//! The network: a queue for each lane, filled as the kernel's steering does.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use isthmus_core::{BULK_TYPE, Transmit};
use shuttle::sync::{Condvar, Mutex};

/// Lanes that receive.
pub(crate) const LANES: usize = 2;
/// Messages that a lane reads in one go.
const BATCH: usize = 4;

/// Datagrams as a socket gives them: one, or several of equal size in a row.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) from: SocketAddr,
    pub(crate) contents: Vec<u8>,
    pub(crate) segment_size: usize,
}

/// Messages that wait for a lane.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Message>,
    is_closed: bool,
}

/// All queues, by the host's endpoint.
pub(crate) struct Wire {
    pub(crate) queues: BTreeMap<SocketAddr, [Queue; LANES]>,
}

impl Queue {
    pub(crate) fn push(&self, message: Message) {
        self.waiting.lock().expect("no panic").messages.push_back(message);
        self.changed.notify_one();
    }

    /// The next message, waiting if necessary; nothing after the end.
    pub(crate) fn take(&self) -> Vec<Message> {
        let mut waiting = self.waiting.lock().expect("no panic");
        while waiting.messages.is_empty() && !waiting.is_closed {
            waiting = self.changed.wait(waiting).expect("no panic");
        }
        let count = waiting.messages.len().min(BATCH);
        waiting.messages.drain(..count).collect()
    }

    /// Nothing is waited for any more.
    pub(crate) fn close(&self) {
        self.waiting.lock().expect("no panic").is_closed = true;
        self.changed.notify_all();
    }
}

/// The messages that a run of datagrams arrives as, with their lanes: datagrams in a row for one lane
/// stay together.
pub(crate) fn messages(from: SocketAddr, transmit: &Transmit<'_>) -> Vec<(usize, Message)> {
    let segment_size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
    let mut messages: Vec<(usize, Message)> = Vec::new();
    for datagram in transmit.contents.chunks(segment_size) {
        let lane = lane(datagram);
        match messages.last_mut().filter(|(last, _)| *last == lane) {
            Some((_, message)) => message.contents.extend_from_slice(datagram),
            None => {
                let contents = datagram.to_vec();
                messages.push((lane, Message { from, contents, segment_size }));
            }
        }
    }
    messages
}

/// As the program that the agent gives the kernel has it.
fn lane(datagram: &[u8]) -> usize {
    match datagram {
        [BULK_TYPE, lane, ..] if usize::from(*lane) < LANES => usize::from(*lane),
        _ => 0,
    }
}
