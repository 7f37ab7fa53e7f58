//! Two ends of bulk sessions, and what may come between them.

use std::time::{Duration, Instant};

use isthmus_model::HostId;

use crate::bulk::message::{Heard, Message};
use crate::bulk::{Bulk, Ends, HEADER, Header, Offering, TAG};
use crate::{Cipher, Ciphers};

/// Plays what two ends of a bulk session say to each other, some of it changed, dropped or made up.
/// Says whether anything was understood.
///
/// # Panics
///
/// If a changed packet is opened, or one twice.
pub fn fuzz_bulk(input: &[u8]) -> bool {
    let ciphers = Ciphers::of(&[Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305]);
    let mut ends = [Bulk::default(), Bulk::default()];
    let names =
        [Ends { here: HostId(1), there: HostId(2) }, Ends { here: HostId(2), there: HostId(1) }];
    let mut now = Instant::now();
    let mut line: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut is_understood = false;
    let mut rest = input;
    while let Some(([action, argument], after)) = rest.split_first_chunk::<2>() {
        rest = after;
        let side = usize::from(action & 1);
        match action >> 1 & 7 {
            0 => {
                let (session, life) = (u32::from(*argument), u64::from(action >> 4));
                ends[side].offer(session, Offering { life, ciphers, lanes: 2 }, now);
            }
            1 => now += Duration::from_millis(u64::from(*argument) * 100),
            2 => line.truncate(usize::from(*argument)),
            3 => seal_and_open(&mut ends, side, *argument, now),
            4 => {
                let (message, after) = rest.split_at(rest.len().min(usize::from(*argument) * 8));
                rest = after;
                line.push((side, message.to_vec()));
            }
            5 => {
                if let Some((_, bytes)) = line.last_mut()
                    && let Some(byte) = bytes.get_mut(usize::from(*argument))
                {
                    *byte ^= 1 << (argument % 8);
                }
            }
            _ => {
                if let Some((to, bytes)) = line.pop()
                    && let Some(heard) = Heard::read(&bytes)
                {
                    is_understood = true;
                    match heard {
                        Heard::Offer(offer) => {
                            ends[to].handle_offer(&offer, ciphers, names[to], now);
                        }
                        Heard::Answer(answer) => {
                            if let Some(ready) = ends[to].handle_answer(&answer, names[to]) {
                                line.push((1 - to, Message::Ready(&ready).bytes(<[u8]>::to_vec)));
                            }
                        }
                        Heard::Ready(ready) => ends[to].handle_ready(&ready),
                    }
                }
            }
        }
        for side in [0, 1] {
            while let Some(message) = ends[side].poll(now) {
                line.push((1 - side, message.bytes(<[u8]>::to_vec)));
            }
        }
    }
    is_understood
}

fn seal_and_open(ends: &mut [Bulk; 2], side: usize, change: u8, now: Instant) {
    let mut datagram = vec![7; HEADER + 32 + TAG];
    if !ends[side].seal(0, 0, &mut datagram) {
        return;
    }
    let mut changed = datagram.clone();
    changed[usize::from(change) % (HEADER + 32 + TAG)] ^= 1;
    let other = &mut ends[1 - side];
    for (mut bytes, may_open) in [(changed, false), (datagram.clone(), true), (datagram, false)] {
        let opened = Header::read(&bytes).is_some_and(|header| other.open(header, &mut bytes, now));
        assert!(may_open || !opened, "opened what was changed, or twice");
    }
}
