"""A program that speaks to the mesh all the time: by flows that it keeps, and by new ones. Prints how
each try ends and what it took. Arguments: its own overlay addresses, a comma, places as ADDRESS/PORT/KIND."""

import socket
import sys
import threading
import time

SECRET = b"GET / HTTP/1.1\r\nhost: web\r\nauthorization: Bearer overlay-secret\r\n\r\n"
comma = sys.argv.index(",")
OWN, PLACES = sys.argv[1:comma], sys.argv[comma + 1 :]


def once(address, port, kind, bound):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as it:
        it.settimeout(3)
        if bound:
            level, option = (socket.IPPROTO_IPV6, 78) if family == socket.AF_INET6 else (0, 15)
            it.setsockopt(level, option, 1)
            it.bind((next(own for own in OWN if (":" in own) == (":" in address)), 0))
        it.connect((address, port))
        it.sendall(SECRET)
        return it.recv(100)[:15]


def again_and_again(address, port, kind, bound):
    while True:
        began = time.monotonic()
        try:
            result = once(address, port, kind, bound)
        except OSError as error:
            result = error
        took = time.monotonic() - began
        print(f"TRY {kind} {address} bound={bound} {took:.2f} {result!r}", flush=True)
        time.sleep(0.1)


def for_long(address, port):
    while True:
        try:
            with socket.create_connection((address, port), timeout=5) as it:
                while True:
                    it.sendall(SECRET)
                    print(f"LONG {address} {it.recv(100)[:15]!r}", flush=True)
                    time.sleep(0.05)
        except OSError:
            time.sleep(0.1)


for place in PLACES:
    address, port, kind = place.split("/")
    if kind == "long":
        threading.Thread(target=for_long, args=[address, int(port)]).start()
        continue
    for bound in (False, True):
        threading.Thread(target=again_and_again, args=[address, int(port), kind, bound]).start()
