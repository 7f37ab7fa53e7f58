//! Splitting and putting together, as the kernels at both ends of a tunnel see it.

use std::time::{Duration, Instant};

use isthmus_model::HostId;

use crate::bulk::message::{Heard, Message};
use crate::bulk::{Bulk, Ends, HEADER, Header, Offering, TAG};
use crate::packet::{Headers, Offload, Run, SuperPacket, checksum};
use crate::receive::complete;
use crate::{Cipher, Ciphers};

/// The packets that a super-packet stands for. None if it is none.
///
/// # Panics
///
/// If they aren't packets in their own right.
pub fn split(packet: &[u8], size: u16) -> Option<Vec<Vec<u8>>> {
    let headers = Headers::parse(packet).ok()?;
    let whole = SuperPacket::new(packet, &headers, size).ok()?;
    let mut out = vec![0; 70_000];
    let segments: Vec<Vec<u8>> = (0..whole.count())
        .map(|index| {
            // INVARIANT: no packet is longer than 65,535 bytes.
            let length = whole.write_partial(index, &mut out).expect("a segment");
            assert_eq!(length, whole.length(index));
            let mut completed = out[..length].to_vec();
            complete(&mut completed).expect("what was left out");
            assert_eq!(whole.write(index, &mut out), Some(length));
            assert_eq!(completed, out[..length], "completed later, or at once");
            completed
        })
        .collect();
    assert_eq!(whole.write(whole.count(), &mut out), None);
    assert_eq!(segments.iter().map(Vec::len).sum::<usize>(), whole.bytes());
    Some(segments)
}

/// Puts packets together as the node does, and splits the runs again as the kernel does. Returns
/// what comes out, and of how many frames.
///
/// # Panics
///
/// If a run isn't what the kernel takes.
pub fn put_together_and_apart(packets: &[Vec<u8>]) -> (Vec<Vec<u8>>, usize) {
    let mut out = Vec::new();
    let (mut at, mut frames) = (0, 0);
    while let Some(first) = packets.get(at) {
        let mut run =
            Headers::parse(first).ok().and_then(|headers| Run::begin(first, &headers, false));
        let mut count = 1;
        while let (Some(run), Some(next)) = (&mut run, packets.get(at + count)) {
            if !Headers::parse(next).is_ok_and(|headers| run.join(first, next, &headers, false)) {
                break;
            }
            count += 1;
        }
        frames += 1;
        match run.filter(|_| count > 1) {
            None => out.push(first.clone()),
            Some(run) => out.extend(apart(&run, &packets[at..at + count])),
        }
        at += count;
    }
    (out, frames)
}

fn apart(run: &Run, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let headers = run.headers();
    assert_eq!(run.count(), packets.len());
    assert_eq!(run.bytes(), packets.iter().map(Vec::len).sum::<usize>());
    let header = run.header(&packets[0], headers).expect("a run that was begun");
    let mut frame = header.bytes().to_vec();
    for (at, packet) in packets.iter().enumerate() {
        assert_eq!(packet.len(), headers.payload_offset + run.payload(at));
        frame.extend_from_slice(&packet[headers.payload_offset..]);
    }
    let (offload, packet) = Offload::read(&mut frame).expect("our own header");
    assert_eq!(offload.checksum_start.map(usize::from), Some(headers.l4_offset));
    offload.segment.and_then(|size| split(packet, size)).expect("a super-packet")
}

/// Identifications of packets that mustn't be fragmented mean nothing (RFC 6864 section 4.1).
pub fn without_identification(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() >= 20 && packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Plays a frame of the TUN device, and what the other end makes of it: two bytes choose a segment
/// to change, and how; the rest is the frame. Says whether the frame is one of many packets.
///
/// # Panics
///
/// If anything is lost, made up or repaired.
pub fn fuzz_offload(input: &[u8]) -> bool {
    let Some(([which, change], frame)) = input.split_first_chunk::<2>() else { return false };
    let mut frame = frame.to_vec();
    let Ok((offload, packet)) = Offload::read(&mut frame) else { return false };
    let Ok(headers) = Headers::parse(packet) else { return false };
    let _ = offload.complete(packet, &headers);
    let Some(mut segments) = offload.segment.and_then(|size| split(packet, size)) else {
        return false;
    };
    for segment in &segments {
        let headers = Headers::parse(segment).expect("a packet in its own right");
        assert!(checksum::verify(segment, &headers));
    }
    let place = usize::from(*which) % segments.len();
    let at = usize::from(*change) % segments[place].len();
    segments[place][at] ^= 1 << (which % 8);
    if change % 2 == 0 {
        let twice = segments[place].clone();
        segments.push(twice);
    }
    let (got, _) = put_together_and_apart(&segments);
    let plain = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
        packets.iter().map(|packet| without_identification(packet)).collect()
    };
    assert_eq!(plain(&got), plain(&segments));
    true
}

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
