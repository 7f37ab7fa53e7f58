//! The BPF program that runs for each packet on its way to the TUN device, while its socket is at hand.
//!
//! ```text
//!   IPv6 with a routing header ─▶ dropped        later fragment, TCP but SYN ─▶ passed
//!   UDP, and ICMP as ports 0:
//!         same socket as before? ──yes──▶ refused lately? ──no──▶ passed
//!              │ no: another, or the first      │ yes: dropped for the time that the agent says
//!              ▼                                ▼ (after it: as below)
//!   is its owner held back? ──yes──▶ dropped
//!              │ no; for a second after it only one packet in a millisecond: the agent needs some to
//!              ▼     hold a flood back again, and the device's queue would be full by then
//!   UDP: socket, user and cgroup are noted, `changes` counted up ─▶ passed
//! ```

use super::{CHANGE_SLOTS, Maps, Slot};
use crate::bpf::{Assembler, If, Register, Size};

const R0: Register = Register(0);
const R1: Register = Register(1);
const R2: Register = Register(2);
const R3: Register = Register(3);
const R4: Register = Register(4);
/// Kept over calls.
const PACKET: Register = Register(6);
const R7: Register = Register(7);
const R8: Register = Register(8);
const R9: Register = Register(9);
const STACK: Register = Register(10);

/// The stack: a [`flow key`](super::flow_key), a [`Sender`](super::Sender) as the map has it, headers
/// as they are read, an [`owner key`](super::owner_key), an array's index.
const KEY: i16 = -40;
const PORTS: i16 = KEY + 32;
const SENDER: i16 = -80;
/// Offset in a sender's entry: the time of its last packet, in ticks of the kernel's clock.
const LAST: i16 = 32;
/// A flow whose last packet is so many ticks old (0.1 to 1 s, by the kernel) has none on its way any more.
const QUIET: i32 = 100;
const HEADER: i16 = -128;
const OWNER: i16 = -144;
const INDEX: i16 = -148;

/// Offsets in `struct __sk_buff`.
const PROTOCOL: i16 = 16;

const LOOKUP: i32 = 1;
const UPDATE: i32 = 2;
const TIME: i32 = 5;
const READ_PACKET: i32 = 26;
const SOCKET_COOKIE: i32 = 46;
const SOCKET_UID: i32 = 47;
const CGROUP: i32 = 79;
/// Compiled into a load from memory, unlike [`TIME`]: each packet may have it.
const TICKS: i32 = 118;

/// `TC_ACT_UNSPEC`: as if this program weren't here.
const PASS: i32 = -1;
/// `TC_ACT_SHOT`.
const DROP: i32 = 2;

/// Multiplicative hashing by the golden ratio; the highest 12 bits number a slot.
pub(super) const SPREAD: u32 = 0x9e37_79b1;
pub(super) const SPREAD_SHIFT: u32 = 32 - CHANGE_SLOTS.ilog2();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    V4,
    Transport,
    Udp,
    Echo,
    Keyed,
    Other,
    Police,
    Admitted,
    Moved,
    Keep,
    Store,
    Denied,
    HeldBack,
    Routed,
    OwnerKnown,
    Counted,
    Pass,
}

/// The instructions. None if a jump leads nowhere.
pub(super) fn program(maps: &Maps) -> Option<Vec<u64>> {
    let mut code = Assembler::new();
    let it = &mut code;
    it.copy(PACKET, R1);
    read_v6(it);
    read_v4(it);
    it.label(To::Transport);
    it.go_if(R8, If::Equal, libc::IPPROTO_UDP, To::Udp);
    it.go_if(R8, If::Equal, libc::IPPROTO_ICMP, To::Echo);
    it.go_if(R8, If::Equal, libc::IPPROTO_ICMPV6, To::Echo);
    it.go_if(R8, If::NotEqual, libc::IPPROTO_TCP, To::Other);
    only_syn(it);
    it.label(To::Other);
    it.set(R8, 0);
    it.go(To::Police);
    it.label(To::Echo);
    it.store_constant(Size::Word, STACK, PORTS, 0);
    it.go(To::Keyed);
    it.label(To::Udp);
    known_or_new(it, maps);
    police(it, maps);
    it.label(To::Admitted);
    it.go_if(R8, If::Equal, 0, To::Pass);
    note_sender(it, maps);
    it.go(To::Pass);
    endings(it, maps);
    code.finish()
}

/// Leaves the transport's number in R8 and its offset in R7.
fn read_v6(it: &mut Assembler<To>) {
    const ROUTING: i32 = libc::IPPROTO_ROUTING;
    const FRAGMENT: i32 = libc::IPPROTO_FRAGMENT;
    it.load(Size::Word, R2, PACKET, PROTOCOL);
    it.go_if(R2, If::Equal, big_endian(libc::ETH_P_IP as u16), To::V4);
    it.go_if(R2, If::NotEqual, big_endian(libc::ETH_P_IPV6 as u16), To::Pass);
    it.set(R2, 0);
    read_packet(it, HEADER, 40);
    it.set(R7, 40);
    it.load(Size::Byte, R8, STACK, HEADER + 6);
    // Any user can send one. What is behind it would be seen by the agent and not here.
    it.go_if(R8, If::Equal, ROUTING, To::Routed);
    for at in [0, 8, 16, 24] {
        it.load(Size::Double, R2, STACK, HEADER + 8 + at);
        it.store(Size::Double, STACK, KEY + at, R2);
    }
    it.go_if(R8, If::NotEqual, FRAGMENT, To::Transport);
    it.copy(R2, R7);
    read_packet(it, HEADER, 8);
    it.load(Size::Half, R2, STACK, HEADER + 2);
    it.and(R2, big_endian(0xfff8));
    it.go_if(R2, If::NotEqual, 0, To::Pass);
    it.load(Size::Byte, R8, STACK, HEADER);
    it.set(R7, 48);
    it.go(To::Transport);
}

fn read_v4(it: &mut Assembler<To>) {
    let mapped = u32::to_be(0xffff).cast_signed();
    it.label(To::V4);
    it.set(R2, 0);
    read_packet(it, HEADER, 20);
    it.load(Size::Half, R2, STACK, HEADER + 6);
    it.and(R2, big_endian(0x1fff));
    it.go_if(R2, If::NotEqual, 0, To::Pass);
    it.load(Size::Byte, R7, STACK, HEADER);
    it.and(R7, 15);
    it.shift_left(R7, 2);
    it.load(Size::Byte, R8, STACK, HEADER + 9);
    for (to, from) in [(KEY, HEADER + 12), (KEY + 16, HEADER + 16)] {
        it.store_constant(Size::Double, STACK, to, 0);
        it.store_constant(Size::Word, STACK, to + 8, mapped);
        it.load(Size::Word, R2, STACK, from);
        it.store(Size::Word, STACK, to + 12, R2);
    }
}

/// Passes what doesn't open a TCP connection.
fn only_syn(it: &mut Assembler<To>) {
    const FLAGS: i32 = 13;
    const SYN: i32 = 0x02;
    const SYN_AND_ACK: i32 = 0x12;
    it.copy(R2, R7);
    it.add(R2, FLAGS);
    read_packet(it, HEADER, 1);
    it.load(Size::Byte, R2, STACK, HEADER);
    it.and(R2, SYN_AND_ACK);
    it.go_if(R2, If::NotEqual, SYN, To::Pass);
}

/// Passes or drops what comes from the same socket as before. For what doesn't, R8 is the socket's
/// cookie, and R7 the entry so far; R8 is 0 where nothing is to be noted.
fn known_or_new(it: &mut Assembler<To>, maps: &Maps) {
    it.copy(R2, R7);
    read_packet(it, PORTS, 4);
    it.label(To::Keyed);
    it.copy(R1, PACKET);
    it.call(SOCKET_COOKIE);
    it.copy(R8, R0);
    // No socket: what is forwarded.
    it.go_if(R8, If::Equal, 0, To::Pass);
    lookup(it, &maps.senders, KEY);
    it.copy(R7, R0);
    it.go_if(R7, If::Equal, 0, To::Police);
    it.load(Size::Double, R2, R7, 0);
    it.go_if_other(R2, If::NotEqual, R8, To::Police);
    it.call(TICKS);
    it.store(Size::Double, R7, LAST, R0);

    it.store_constant(Size::Word, STACK, INDEX, Slot::RefusedUntil.index().cast_signed());
    lookup(it, &maps.shared, INDEX);
    it.go_if(R0, If::Equal, 0, To::Pass);
    it.load(Size::Double, R9, R0, 0);
    it.go_if(R9, If::Equal, 0, To::Pass);
    it.call(TIME);
    it.go_if_other(R0, If::AtLeast, R9, To::Pass);
    it.copy(R9, R0);
    lookup(it, &maps.refused, KEY);
    it.go_if(R0, If::Equal, 0, To::Pass);
    it.load(Size::Double, R2, R0, 8);
    it.go_if_other(R2, If::NotEqual, R8, To::Pass);
    it.load(Size::Double, R2, R0, 0);
    it.go_if_other(R2, If::Greater, R9, To::Denied);
    it.set(R8, 0);
}

/// Drops what an owner sends who is held back, and most of it for some time after that.
fn police(it: &mut Assembler<To>, maps: &Maps) {
    it.label(To::Police);
    it.copy(R1, PACKET);
    it.call(SOCKET_UID);
    it.copy(R9, R0);
    it.copy(R1, PACKET);
    it.call(CGROUP);
    it.store(Size::Double, STACK, SENDER + 8, R0);
    it.store(Size::Word, STACK, SENDER + 24, R9);
    it.store_constant(Size::Word, STACK, SENDER + 28, 0);
    // Root's services are told apart; other users have but one budget, however many cgroups.
    it.store(Size::Word, STACK, OWNER + 8, R9);
    it.store_constant(Size::Word, STACK, OWNER + 12, 0);
    it.store_constant(Size::Double, STACK, OWNER, 0);
    it.go_if(R9, If::NotEqual, 0, To::OwnerKnown);
    it.store(Size::Double, STACK, OWNER, R0);
    it.label(To::OwnerKnown);
    it.call(TIME);
    it.copy(R9, R0);
    lookup(it, &maps.held_back, OWNER);
    it.go_if(R0, If::Equal, 0, To::Admitted);
    it.load(Size::Double, R2, R0, 0);
    it.go_if_other(R2, If::Greater, R9, To::HeldBack);
    it.load(Size::Double, R2, R0, 8);
    it.go_if_other(R9, If::AtLeast, R2, To::Admitted);
    it.copy(R2, R9);
    it.add(R2, super::ONE_IN.as_nanos() as i32);
    it.store(Size::Double, R0, 0, R2);
}

/// Notes the socket, its user and cgroup, and when the flow went from one owner to another whose packets
/// may still be on their way.
fn note_sender(it: &mut Assembler<To>, maps: &Maps) {
    it.call(TICKS);
    it.store(Size::Double, STACK, SENDER + LAST, R0);
    it.store(Size::Double, STACK, SENDER, R8);
    it.store_constant(Size::Double, STACK, SENDER + 16, 0);
    it.go_if(R7, If::Equal, 0, To::Store);
    it.load(Size::Double, R2, R7, 16);
    it.load(Size::Double, R3, R7, 8);
    it.load(Size::Double, R4, STACK, SENDER + 8);
    it.go_if_other(R3, If::NotEqual, R4, To::Moved);
    it.load(Size::Word, R3, R7, 24);
    it.load(Size::Word, R4, STACK, SENDER + 24);
    it.go_if_other(R3, If::Equal, R4, To::Keep);
    it.label(To::Moved);
    it.load(Size::Double, R3, R7, LAST);
    it.add(R3, QUIET);
    it.set(R2, 0);
    it.go_if_other(R0, If::AtLeast, R3, To::Keep);
    it.copy(R2, R9);
    it.label(To::Keep);
    it.store(Size::Double, STACK, SENDER + 16, R2);
    it.label(To::Store);
    // Not in place: the agent must never see half of it.
    it.load_map(R1, &maps.senders);
    it.copy(R2, STACK);
    it.add(R2, KEY.into());
    it.copy(R3, STACK);
    it.add(R3, SENDER.into());
    it.set(R4, 0);
    it.call(UPDATE);
    // Only then: who sees the count sees the entry.
    it.load(Size::Word, R2, STACK, PORTS);
    it.multiply_u32(R2, SPREAD);
    it.shift_right_u32(R2, SPREAD_SHIFT.cast_signed());
    it.store(Size::Word, STACK, INDEX, R2);
    count(it, maps);
}

fn endings(it: &mut Assembler<To>, maps: &Maps) {
    for (label, slot) in
        [(To::Denied, Slot::Denied), (To::HeldBack, Slot::HeldBack), (To::Routed, Slot::Routed)]
    {
        it.label(label);
        it.set(R2, slot.index().cast_signed());
        it.go(To::Counted);
    }
    it.label(To::Counted);
    it.store(Size::Word, STACK, INDEX, R2);
    count(it, maps);
    it.set(R0, DROP);
    it.exit();
    it.label(To::Pass);
    it.set(R0, PASS);
    it.exit();
}

/// Adds one to the slot that is in the index; where there is none, passes.
fn count(it: &mut Assembler<To>, maps: &Maps) {
    lookup(it, &maps.shared, INDEX);
    it.go_if(R0, If::Equal, 0, To::Pass);
    it.set(R1, 1);
    it.atomic_add(R0, 0, R1);
}

/// Copies so much of the packet from offset R2 to the stack; passes what is shorter.
fn read_packet(it: &mut Assembler<To>, to: i16, length: i32) {
    it.copy(R1, PACKET);
    it.copy(R3, STACK);
    it.add(R3, to.into());
    it.set(R4, length);
    it.call(READ_PACKET);
    it.go_if(R0, If::NotEqual, 0, To::Pass);
}

/// Leaves in R0 where the value is, or 0.
fn lookup(it: &mut Assembler<To>, map: &crate::bpf::Map, key: i16) {
    it.load_map(R1, map);
    it.copy(R2, STACK);
    it.add(R2, key.into());
    it.call(LOOKUP);
}

/// A 16-bit field as the program loads it.
fn big_endian(value: u16) -> i32 {
    value.to_be().into()
}
