"""What both scripts of attacks share: the list of attacks, and packets made by hand."""

import json
import socket
import struct
import sys

ATTACKS = []
FACTS = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}


def attack(bites=False):
    """Lists an attack. One that `bites` is known to be heard by a host without a guard."""

    def list_it(function):
        ATTACKS.append((function, bites))
        return function

    return list_it


def run_all():
    """Runs each attack with a token to recognise it by, and prints what it found out, as JSON."""
    report = []
    for function, bites in ATTACKS:
        name = function.__name__
        answers, errors = [], []
        try:
            answers = [answer for answer in function(f"#{name}#".encode()) or [] if answer]
        except OSError as error:
            errors.append(f"{type(error).__name__}: {error}")
        tries = " ".join(function.__doc__.split())
        report.append(
            {"name": name, "tries": tries, "bites": bites, "answers": answers, "errors": errors}
        )
    print(json.dumps(report), flush=True)


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packed(address):
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def pseudo(source, destination, protocol, length):
    if ":" in source:
        return packed(source) + packed(destination) + struct.pack("!IxxxB", length, protocol)
    return packed(source) + packed(destination) + struct.pack("!xBH", protocol, length)


def ip(source, destination, protocol, payload, options=b"", fragment=0):
    """A packet of the addresses' family. `fragment` is the field of flags and offset in IPv4."""
    if ":" in source:
        return (
            struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
            + packed(source)
            + packed(destination)
            + payload
        )
    words = 5 + len(options) // 4
    head = struct.pack(
        "!BBHHHBBH", 0x40 | words, 0, words * 4 + len(payload), 77, fragment, 64, protocol, 0
    )
    head += packed(source) + packed(destination) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp_segment(source, destination, sport, dport, data):
    length = 8 + len(data)
    segment = struct.pack("!HHHH", sport, dport, length, 0) + data
    total = checksum(pseudo(source, destination, 17, length) + segment) or 0xFFFF
    return segment[:6] + struct.pack("!H", total) + data


def udp(source, destination, sport, dport, data):
    return ip(source, destination, 17, udp_segment(source, destination, sport, dport, data))


def tcp(source, destination, sport, dport, flags, seq=1, ack=0, data=b""):
    segment = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 8192, 0, 0) + data
    total = checksum(pseudo(source, destination, 6, len(segment)) + segment)
    segment = segment[:16] + struct.pack("!H", total) + segment[18:]
    return ip(source, destination, 6, segment)


def icmp(source, destination, kind, code, rest, data):
    protocol = 58 if ":" in source else 1
    message = struct.pack("!BBHI", kind, code, 0, rest) + data
    base = pseudo(source, destination, 58, len(message)) if protocol == 58 else b""
    message = message[:2] + struct.pack("!H", checksum(base + message)) + message[4:]
    return ip(source, destination, protocol, message)


def ask(address, port, text, timeout=0.4, kind=socket.SOCK_STREAM, bind=None, options=()):
    """What somebody at an address answers, by an ordinary socket; None for nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as it:
        it.settimeout(timeout)
        for level, option, value in options:
            it.setsockopt(level, option, value)
        try:
            if bind:
                it.bind(bind)
            it.connect((address, port))
            it.sendall(text)
            return it.recv(200).decode("latin-1")
        except OSError:
            return None


def get(token, identity=True):
    """A request that claims to have been judged already."""
    claim = b"x-isthmus-identity: spiffe://corp.example/ns/prod/sa/client\r\n" if identity else b""
    return b"GET /" + token.strip(b"#") + b" HTTP/1.1\r\nhost: web\r\n" + claim + b"\r\n"
