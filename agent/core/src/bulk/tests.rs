//! Two ends that say what they have to say over a line that loses, repeats, reorders, and kills.

use std::collections::HashSet;

use proptest::prelude::*;

use super::message::Heard;
use super::*;

const LANES_HERE: u8 = 3;
const BOTH: [Cipher; 2] = [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];

/// One end, and what it was told to say.
struct End {
    bulk: Bulk,
    life: u64,
    ends: Ends,
    sessions: u32,
}

/// Messages on the line.
#[derive(Clone)]
enum Packet {
    Message(Vec<u8>),
    /// A number that no other packet has, sealed for one of the receiver's lives.
    Sealed {
        number: u64,
        datagram: Vec<u8>,
        life: u64,
        at: Instant,
    },
}

struct Pair {
    ends: [End; 2],
    /// To each end.
    lines: [Vec<Packet>; 2],
    opened: HashSet<u64>,
    numbers: u64,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let end = |here, there| End {
            bulk: Bulk::default(),
            life: u64::from(here),
            ends: Ends { here: HostId(here), there: HostId(there) },
            sessions: here << 16,
        };
        Self {
            ends: [end(1, 2), end(2, 1)],
            lines: [Vec::new(), Vec::new()],
            opened: HashSet::new(),
            numbers: 0,
            now: Instant::now(),
        }
    }

    /// A new WireGuard session: each side offers.
    fn rekey(&mut self, side: usize) {
        let end = &mut self.ends[side];
        end.sessions += 1;
        let by = Offering { life: end.life, ciphers: Ciphers::of(&BOTH), lanes: LANES_HERE };
        end.bulk.offer(end.sessions, by, self.now);
        self.speak(side);
    }

    fn speak(&mut self, side: usize) {
        while let Some(message) = self.ends[side].bulk.poll(self.now) {
            let bytes = message.bytes(<[u8]>::to_vec);
            self.lines[1 - side].push(Packet::Message(bytes));
        }
    }

    fn send(&mut self, side: usize) {
        self.numbers += 1;
        let mut datagram = vec![0; HEADER];
        datagram.extend_from_slice(&self.numbers.to_be_bytes());
        datagram.extend_from_slice(&[0; TAG]);
        let life = self.ends[side].bulk.peer_life.unwrap_or_default();
        let (lane, flow) = (self.numbers % 2, self.numbers % 5);
        if self.ends[side].bulk.seal(lane as u8, flow as u32, &mut datagram) {
            let (number, at) = (self.numbers, self.now);
            self.lines[1 - side].push(Packet::Sealed { number, datagram, life, at });
        }
    }

    /// Gives an end the packet at this place of its line; returns what was opened.
    fn deliver(&mut self, side: usize, at: usize) -> Option<(u64, bool)> {
        let line = &mut self.lines[side];
        if line.is_empty() {
            return None;
        }
        let packet = line.remove(at % line.len());
        self.receive(side, packet)
    }

    fn receive(&mut self, side: usize, packet: Packet) -> Option<(u64, bool)> {
        let end = &mut self.ends[side];
        match packet {
            Packet::Message(bytes) => {
                let Some(heard) = Heard::read(&bytes) else { panic!("no message: {bytes:?}") };
                match heard {
                    Heard::Offer(offer) => {
                        end.bulk.handle_offer(&offer, Ciphers::of(&BOTH), end.ends, self.now);
                    }
                    Heard::Answer(answer) => {
                        if let Some(ready) = end.bulk.handle_answer(&answer, end.ends) {
                            let ready = Message::Ready(&ready).bytes(<[u8]>::to_vec);
                            self.lines[1 - side].push(Packet::Message(ready));
                        }
                    }
                    Heard::Ready(ready) => end.bulk.handle_ready(&ready),
                }
                self.speak(side);
                None
            }
            Packet::Sealed { number, mut datagram, life, .. } => {
                let Some(header) = Header::read(&datagram) else { panic!("no bulk packet") };
                let opens = end.bulk.open(header, &mut datagram, self.now);
                if opens {
                    assert_eq!(datagram[HEADER..HEADER + 8], number.to_be_bytes());
                    assert_eq!(life, end.life, "a former life's packet was opened");
                    assert!(self.opened.insert(number), "{number} was opened twice");
                }
                Some((number, opens))
            }
        }
    }

    /// WireGuard's sessions are some time apart, longer than packets stay on the line.
    fn wait(&mut self) {
        self.now += Duration::from_secs(60);
        self.lines = [Vec::new(), Vec::new()];
    }

    fn restart(&mut self, side: usize) {
        let end = &mut self.ends[side];
        end.life += 16;
        end.bulk = Bulk::default();
        end.sessions += 1_000;
    }

    /// Lets everything arrive, in order, for this long.
    fn settle(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            for side in [0, 1] {
                self.speak(side);
                while self.deliver(side, 0).is_some() || !self.lines[side].is_empty() {}
            }
            self.now += REPEAT / 2;
        }
    }
}

#[test]
fn each_direction_is_ready_after_three_messages() {
    let mut pair = Pair::new();
    pair.rekey(0);
    assert_eq!(pair.lines[1].len(), 1, "the offer");
    pair.deliver(1, 0);
    assert_eq!(pair.lines[0].len(), 1, "the answer");
    assert_eq!(pair.ends[1].bulk.cipher(), None, "not before the other end can open");
    pair.deliver(0, 0);
    pair.deliver(1, 0);
    assert_eq!(pair.ends[1].bulk.cipher(), Some(Cipher::Aes256Gcm));
    assert_eq!(pair.ends[0].bulk.cipher(), None, "its direction wasn't offered");
}

#[test]
fn who_has_no_cipher_in_common_stays_with_wireguard() {
    let mut pair = Pair::new();
    let by = Offering { life: 1, ciphers: Ciphers::of(&[Cipher::Aes256Gcm]), lanes: 1 };
    pair.ends[0].bulk.offer(7, by, pair.now);
    pair.speak(0);
    let Some(Packet::Message(offer)) = pair.lines[1].pop() else { panic!("no offer") };
    let Some(Heard::Offer(offer)) = Heard::read(&offer) else { panic!("no offer") };
    let end = &mut pair.ends[1];
    end.bulk.handle_offer(&offer, Ciphers::of(&[Cipher::ChaCha20Poly1305]), end.ends, pair.now);
    assert!(end.bulk.poll(pair.now).is_none());
}

#[test]
fn an_answer_by_another_cipher_than_it_says_opens_nothing() {
    let mut pair = Pair::new();
    pair.rekey(0);
    pair.deliver(1, 0);
    let Some(Packet::Message(mut answer)) = pair.lines[0].pop() else { panic!("no answer") };
    answer[2] ^= 3;
    pair.receive(0, Packet::Message(answer));
    assert_eq!(pair.lines[1].len(), 1, "ready, but by another key");
    pair.deliver(1, 0);
    assert_eq!(pair.ends[1].bulk.cipher(), None);
}

#[test]
fn a_flood_of_offers_is_answered_a_few_times_a_second() {
    let mut pair = Pair::new();
    let mut sessions = HashSet::new();
    for _ in 0..1_000 {
        pair.rekey(0);
        pair.deliver(1, 0);
        pair.now += Duration::from_millis(1);
        sessions.extend(pair.ends[1].bulk.pending.as_ref().map(|it| it.sending.session));
    }
    assert_eq!(sessions.len(), 4);
}

#[test]
fn an_offer_that_comes_again_too_late_leads_nowhere() {
    let mut pair = Pair::new();
    pair.rekey(0);
    let offer = pair.lines[1][0].clone();
    pair.settle(Duration::from_secs(1));
    pair.now += REJECT_AFTER;
    pair.speak(1);
    assert_eq!(pair.ends[1].bulk.cipher(), None, "it has served its time");
    pair.receive(1, offer);
    pair.settle(Duration::from_secs(8));
    assert_eq!(pair.ends[1].bulk.cipher(), None, "the other end has the former key");
}

#[test]
fn each_pair_of_lanes_counts_for_itself() {
    let mut pair = Pair::new();
    pair.rekey(0);
    pair.settle(Duration::from_secs(1));
    let mut reserve = |lane, flow, count| {
        let (_, header) = pair.ends[1].bulk.reserve(lane, flow, count).unwrap();
        (header.receiver_lane, header.sender_lane, header.counter)
    };
    assert_eq!(reserve(0, 7, 10), (7 % LANES_HERE, 0, 0));
    assert_eq!(reserve(1, 7, 1), (7 % LANES_HERE, 1, 0));
    assert_eq!(reserve(0, 8, 1), (8 % LANES_HERE, 0, 0));
    assert_eq!(reserve(0, 7, 1), (7 % LANES_HERE, 0, 10));
}

#[test]
fn a_lane_that_no_host_has_is_refused() {
    let mut pair = Pair::new();
    pair.rekey(0);
    pair.settle(Duration::from_secs(1));
    let (key, header) = pair.ends[1].bulk.reserve(LANES, 0, 1).unwrap();
    let mut datagram = vec![0; HEADER + TAG];
    assert!(key.seal(header, &mut datagram));
    assert!(!pair.ends[0].bulk.open(header, &mut datagram, pair.now));
}

#[test]
fn unanswered_messages_are_repeated_and_then_given_up() {
    let mut pair = Pair::new();
    pair.rekey(0);
    for _ in 0..100 {
        pair.now += REPEAT;
        pair.speak(0);
    }
    assert_eq!(pair.lines[1].len(), TRIES as usize);
}

#[test]
fn keys_are_erased_when_what_they_sealed_has_arrived() {
    let mut pair = Pair::new();
    for _ in 0..3 {
        pair.rekey(0);
        pair.settle(Duration::from_secs(2));
    }
    assert_eq!(pair.ends[0].bulk.receiving.len(), 3);
    pair.now += 2 * LINGER;
    pair.speak(0);
    assert_eq!(pair.ends[0].bulk.receiving.len(), 3, "the sender could still use any");
    pair.send(1);
    pair.settle(Duration::from_secs(1));
    pair.now += LINGER;
    pair.speak(0);
    assert_eq!(pair.ends[0].bulk.receiving.len(), 1);
    assert_eq!(pair.ends[0].bulk.sessions().count(), 1);
}

proptest! {
    /// Against what a reader of the protocol expects: a packet that arrives within `LINGER` of being
    /// sealed is opened once, unless its receiver has died meanwhile; nothing is opened twice; and
    /// when the line is good again both ends soon send by bulk sessions.
    #[test]
    fn nothing_that_arrives_is_lost_and_nothing_twice(
        steps in prop::collection::vec((0..9u8, 0..2usize, 0..64usize), 1..120),
    ) {
        let mut pair = Pair::new();
        for (what, side, at) in steps {
            match what {
                0 => { pair.wait(); pair.rekey(side); }
                1 => { pair.wait(); pair.rekey(0); pair.rekey(1); }
                2 if at < 4 => { pair.restart(side); pair.wait(); }
                2 | 3 => pair.send(side),
                4 => { pair.now += REPEAT; pair.speak(0); pair.speak(1); }
                5 if !pair.lines[side].is_empty() => {
                    let lost = at % pair.lines[side].len();
                    pair.lines[side].remove(lost);
                }
                6 if !pair.lines[side].is_empty() => {
                    let twice = pair.lines[side][at % pair.lines[side].len()].clone();
                    pair.lines[side].push(twice);
                }
                _ => {
                    let arrives = pair.lines[side].get(at % pair.lines[side].len().max(1)).cloned();
                    let result = pair.deliver(side, at);
                    if let (Some(Packet::Sealed { number, life, at, .. }), Some((_, opened))) = (arrives, result) {
                        let is_fresh = pair.now < at + LINGER && life == pair.ends[side].life;
                        let expected = is_fresh && !opened;
                        prop_assert!(!expected || pair.opened.contains(&number), "{} was lost", number);
                    }
                }
            }
        }
        pair.rekey(0);
        pair.rekey(1);
        pair.settle(Duration::from_secs(8));
        for side in [0, 1] {
            prop_assert!(pair.ends[side].bulk.cipher().is_some(), "{side} isn't ready");
            pair.send(side);
            prop_assert_eq!(pair.deliver(1 - side, 0).map(|(_, opened)| opened), Some(true));
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..1300), kind in 4..8u8) {
        let mut bytes = bytes;
        if let [version, second, ..] = bytes.as_mut_slice() {
            (*version, *second) = (1, kind);
        }
        let mut pair = Pair::new();
        pair.rekey(0);
        let end = &mut pair.ends[0];
        match Heard::read(&bytes) {
            Some(Heard::Offer(offer)) => {
                end.bulk.handle_offer(&offer, Ciphers::of(&BOTH), end.ends, pair.now);
            }
            Some(Heard::Answer(answer)) => {
                end.bulk.handle_answer(&answer, end.ends);
            }
            Some(Heard::Ready(ready)) => end.bulk.handle_ready(&ready),
            None => {}
        }
    }
}
