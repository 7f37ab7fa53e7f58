//! Splitting and putting together, as the kernels at both ends of a tunnel see it.

use crate::{Headers, Offload, Run, SuperPacket, checksum, complete_checksum};

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
            complete_checksum(&mut completed).expect("what was left out");
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
