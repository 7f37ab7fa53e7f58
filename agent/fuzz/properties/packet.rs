//! Packets: what is read lies within the buffer, what is changed can be changed back, what is built
//! can be read, and no step makes right checksums wrong or wrong ones right.

use isthmus_packet::{
    Address, Echo, FlowKey, Headers, REPLY_BUFFER, Reason, Rewrite, RewriteError, SplitError,
    TcpFlags, Transport, checksum, clamp_mss, decrement_hops, echo_reply, fragment_ipv4,
    icmp_error, protocol, quoted, rewrite_icmp_error, tcp_reset,
};

/// `input` is what to do with the packet (addresses, two ports, an MTU), then the packet. Says whether
/// it can be read.
pub(crate) fn hold(input: &[u8]) -> bool {
    let Some((choices, packet)) = input.split_first_chunk::<8>() else { return false };
    let Ok(headers) = Headers::parse(packet) else { return false };
    let packet = &packet[..headers.total_length];
    let choices = Choices::new(choices);
    lies_within(packet, &headers);
    rewrites_and_back(packet, &headers, &choices);
    crosses_a_rewrite_as_a_quote(packet, &headers, &choices);
    loses_a_hop(packet, &headers);
    has_its_segments_clamped(packet, &headers, &choices);
    is_split(packet, &headers, usize::from(choices.number));
    is_answered(packet, &headers, &choices);
    true
}

struct Choices {
    source: u8,
    destination: u8,
    source_port: u16,
    destination_port: u16,
    /// An MTU, or a segment size.
    number: u16,
}

impl Choices {
    fn new(bytes: &[u8; 8]) -> Self {
        let [source, destination, a, b, c, d, e, f] = *bytes;
        Self {
            source,
            destination,
            source_port: u16::from_be_bytes([a, b]),
            destination_port: u16::from_be_bytes([c, d]),
            number: u16::from_be_bytes([e, f]),
        }
    }

    /// Another key that packets of `from` can be rewritten to.
    fn other(&self, from: &FlowKey, transport: Transport) -> FlowKey {
        let address = |host: u8| match from.source.is_v4() {
            true => Address::v4([100, 64, host, 1]),
            false => Address::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host, 0, 0, 0, 1]),
        };
        let mut to = *from;
        (to.source, to.destination) = (address(self.source), address(self.destination));
        if matches!(transport, Transport::Tcp { .. } | Transport::Udp | Transport::UdpLite) {
            (to.source_port, to.destination_port) = (self.source_port, self.destination_port);
        }
        to
    }
}

fn lies_within(packet: &[u8], headers: &Headers) {
    assert_eq!(Headers::parse(packet).as_ref(), Ok(headers), "what follows a packet is no part");
    assert!(headers.l4_offset >= 20);
    assert!(headers.l4_offset <= headers.payload_offset);
    assert!(headers.payload_offset <= headers.total_length);
    assert_eq!(headers.payload(packet).len(), headers.total_length - headers.payload_offset);
    assert!(headers.key.source.same_family(headers.key.destination));
    assert_eq!(headers.key.reversed().reversed(), headers.key);
    assert_eq!(headers.fragment.is_some(), headers.fragment_key().is_some());
    if headers.is_later_fragment() {
        assert_eq!((headers.key.source_port, headers.key.destination_port), (0, 0));
        assert!(headers.fragment.is_some_and(|fragment| !fragment.is_first()));
    }
    if !headers.key.source.is_v4() {
        assert!(headers.dont_fragment);
        assert!(headers.l4_offset >= 40);
    }
}

fn rewrites_and_back(packet: &[u8], headers: &Headers, choices: &Choices) {
    let to = choices.other(&headers.key, headers.transport);
    let there = Rewrite::between(&headers.key, &to).expect("nothing forbids it");
    let back = Rewrite::between(&to, &headers.key).expect("nor the way back");
    let mut rewritten = packet.to_vec();
    there.apply(&mut rewritten, headers);
    let after = Headers::parse(&rewritten).expect("a rewritten packet can be read");
    assert_eq!(after, Headers { key: to, ..*headers });
    assert_eq!(there.key_after(headers), to);
    assert_eq!(checksum::verify(&rewritten, &after), checksum::verify(packet, headers));
    back.apply(&mut rewritten, &after);
    is_same_but_for_zeros(packet, &rewritten);

    let identity = Rewrite::between(&headers.key, &headers.key).expect("the same");
    assert!(identity.is_identity());
    identity.apply(&mut rewritten, headers);
    is_same_but_for_zeros(packet, &rewritten);

    // What has no ports that can change must not lose its checksum to an attempt.
    let ports = FlowKey { source_port: to.source_port ^ 1, ..to };
    let changeable = [protocol::TCP, protocol::UDP, protocol::UDP_LITE];
    if !changeable.contains(&to.protocol) {
        assert_eq!(Rewrite::between(&to, &ports), Err(RewriteError::Ports));
    }
}

/// One's complement has two zeros: a checksum of one may come back as the other.
fn is_same_but_for_zeros(one: &[u8], other: &[u8]) {
    assert_eq!(one.len(), other.len());
    let words = |bytes: &[u8]| -> Vec<u16> {
        let word = |pair: &[u8]| match *pair {
            [high, low] => u16::from_be_bytes([high, low]),
            [last] => u16::from_be_bytes([last, 0]),
            [..] => 0,
        };
        bytes.chunks(2).map(word).map(|word| if word == 0xffff { 0 } else { word }).collect()
    };
    assert_eq!(words(one), words(other));
}

fn crosses_a_rewrite_as_a_quote(packet: &[u8], headers: &Headers, choices: &Choices) {
    let Some(quote) = quoted(packet, headers) else { return };
    assert!(matches!(headers.transport, Transport::IcmpError { .. }));
    assert!(quote.key.source.same_family(headers.key.source));
    let outer_to = choices.other(&headers.key, headers.transport);
    let inner_to = choices.other(&quote.key, quote.headers().transport);
    let both = |from: &FlowKey, to: &FlowKey| Rewrite::between(from, to).expect("nothing forbids");
    let mut rewritten = packet.to_vec();
    let outer = both(&headers.key, &outer_to);
    let inner = both(&quote.key, &inner_to);
    rewrite_icmp_error(&mut rewritten, headers, &quote, &outer, &inner);
    let after = Headers::parse(&rewritten).expect("a rewritten error can be read");
    let requoted = quoted(&rewritten, &after).expect("and quotes");
    assert_eq!((after.key, requoted.key), (outer_to, inner_to));
    assert_eq!(checksum::verify(&rewritten, &after), checksum::verify(packet, headers));
    let outer = both(&outer_to, &headers.key);
    let inner = both(&inner_to, &quote.key);
    rewrite_icmp_error(&mut rewritten, &after, &requoted, &outer, &inner);
    is_same_but_for_zeros(packet, &rewritten);
}

fn loses_a_hop(packet: &[u8], headers: &Headers) {
    let mut forwarded = packet.to_vec();
    let Some(left) = decrement_hops(&mut forwarded) else {
        assert!(headers.ttl <= 1);
        assert_eq!(forwarded, packet);
        return;
    };
    let after = Headers::parse(&forwarded).expect("a forwarded packet can be read");
    assert!(left >= 1 && left + 1 == headers.ttl);
    assert_eq!(after, Headers { ttl: left, ..*headers });
    assert_eq!(checksum::verify(&forwarded, &after), checksum::verify(packet, headers));
}

fn has_its_segments_clamped(packet: &[u8], headers: &Headers, choices: &Choices) {
    let mut clamped = packet.to_vec();
    if !clamp_mss(&mut clamped, headers, choices.number) {
        assert_eq!(clamped, packet);
        return;
    }
    assert!(matches!(headers.transport, Transport::Tcp { flags } if flags.syn()));
    assert_eq!(Headers::parse(&clamped).as_ref(), Ok(headers));
    // Of a fragment there is no telling.
    if headers.fragment.is_none() {
        assert_eq!(checksum::verify(&clamped, headers), checksum::verify(packet, headers));
    }
    assert!(!clamp_mss(&mut clamped, headers, choices.number), "once is enough");
}

fn is_split(packet: &[u8], headers: &Headers, mtu: usize) {
    let mut used_up = packet.to_vec();
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    match fragment_ipv4(&mut used_up, headers, mtu, |piece| pieces.push(piece.to_vec())) {
        Ok(count) => assert_eq!(count, pieces.len()),
        Err(error) => {
            assert!(pieces.is_empty());
            assert_eq!(used_up, packet);
            assert!(packet.len() > mtu);
            assert_eq!(error == SplitError::DontFragment, headers.dont_fragment, "{error}");
            return;
        }
    }
    if packet.len() <= mtu {
        assert_eq!(pieces, [packet]);
        return;
    }
    let (mut next, more) = headers.fragment.map_or((0, false), |part| (part.offset, part.more));
    let mut payload = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        assert!(piece.len() <= mtu, "{} bytes for an MTU of {mtu}", piece.len());
        let (header, body) = piece.split_at(usize::from(piece[0] & 0x0f) * 4);
        assert_eq!(checksum::sum(header), 0xffff, "the header's checksum is right");
        assert_eq!(usize::from(u16::from_be_bytes([piece[2], piece[3]])), piece.len());
        assert_eq!((&piece[4..6], &piece[8..10]), (&packet[4..6], &packet[8..10]));
        assert_eq!(piece[12..20], packet[12..20]);
        let field = u16::from_be_bytes([piece[6], piece[7]]);
        assert_eq!(field << 3, next, "fragments follow each other");
        assert_eq!(field & 0x2000 != 0, more || index + 1 < pieces.len());
        next = next.wrapping_add(u16::try_from(body.len()).expect("it was in a packet"));
        payload.extend_from_slice(body);
    }
    assert_eq!(payload, packet[headers.l4_offset..], "nothing is lost");
}

fn is_answered(packet: &[u8], headers: &Headers, choices: &Choices) {
    let us = choices.other(&headers.key, headers.transport).source;
    for reason in [
        Reason::PacketTooBig { mtu: choices.number.into() },
        Reason::Prohibited,
        Reason::HostUnreachable,
        Reason::PortUnreachable,
        Reason::HopsExceeded,
    ] {
        let mut out = [0; REPLY_BUFFER];
        if let Some(length) = icmp_error(packet, headers, reason, us, &mut out) {
            let reply = is_well_built(&out[..length], us, headers.key.source);
            assert!(length <= if us.is_v4() { 576 } else { 1280 });
            let quote = quoted(&out[..length], &reply).expect("an error quotes its cause");
            assert_eq!(quote.key, headers.key);
            assert_eq!(icmp_error(&out[..length], &reply, reason, us, &mut [0; 1280]), None);
        }
    }
    is_reset(packet, headers);
    is_echoed(packet, headers);
}

fn is_reset(packet: &[u8], headers: &Headers) {
    let mut out = [0; 60];
    let Some(length) = tcp_reset(packet, headers, &mut out) else { return };
    let reply = is_well_built(&out[..length], headers.key.destination, headers.key.source);
    assert_eq!(reply.key, headers.key.reversed());
    let resets = |flags: TcpFlags| flags.rst() && !flags.syn();
    assert!(matches!(reply.transport, Transport::Tcp { flags } if resets(flags)));
    assert_eq!(tcp_reset(&out[..length], &reply, &mut [0; 60]), None, "a reset isn't reset");
}

fn is_echoed(packet: &[u8], headers: &Headers) {
    let mut out = vec![0; packet.len()];
    let Some(length) = echo_reply(packet, headers, &mut out) else { return };
    let reply = is_well_built(&out[..length], headers.key.destination, headers.key.source);
    let asked = Echo::read(packet, headers).expect("what is answered is a request");
    let answered = Echo::read(&out[..length], &reply).expect("an answer");
    assert!(!asked.is_reply && answered.is_reply);
    assert_eq!(
        (asked.identifier, asked.sequence, asked.payload),
        (answered.identifier, answered.sequence, answered.payload)
    );
    assert_eq!(reply.key, headers.key.reversed());
    assert_eq!(echo_reply(&out[..length], &reply, &mut vec![0; length]), None);
}

fn is_well_built(packet: &[u8], from: Address, to: Address) -> Headers {
    let headers = Headers::parse(packet).expect("what is built can be read");
    assert_eq!(headers.total_length, packet.len());
    assert!(checksum::verify(packet, &headers), "with the right checksums");
    assert_eq!((headers.key.source, headers.key.destination), (from, to));
    assert!(headers.fragment.is_none());
    headers
}
