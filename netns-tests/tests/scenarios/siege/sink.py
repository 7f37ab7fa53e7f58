"""Listens at `udp:PORT` and `tcp:PORT` on all addresses, and prints whom it hears. `ask:FROM:TO` (with
`=` for the colons of IPv6) keeps a flow open, and prints the errors that it is told of."""

import socket
import sys
import threading
import time


def datagrams(port):
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", port))
    print("LISTENING", port, flush=True)
    while True:
        data, peer = server.recvfrom(2048)
        print("HEARD", port, peer[0], data, flush=True)
        try:
            server.sendto(b"pong", peer)
        except OSError as error:
            print("UNANSWERED", error, flush=True)


def connections(port):
    # A short queue: when it is full, the kernel accepts by SYN cookies.
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=0)
    print("LISTENING", port, flush=True)
    while True:
        connection, peer = server.accept()
        threading.Thread(target=attend, args=[port, connection, peer]).start()


def attend(port, connection, peer):
    try:
        while data := connection.recv(65536):
            print("HEARD", port, peer[0], data[:300], flush=True)
            if b" HTTP/" in data:
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            else:
                connection.sendall(b"pong")
    except OSError:
        pass


def ask(source, target):
    it = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET, socket.SOCK_DGRAM)
    it.setsockopt(socket.IPPROTO_IPV6 if ":" in source else socket.IPPROTO_IP, 78 if ":" in source else 15, 1)
    it.bind((source, 7776))
    it.connect((target, 8125))
    it.settimeout(0.1)
    while True:
        try:
            it.send(b"asking")
            it.recv(100)
        except TimeoutError:
            pass
        except OSError as error:
            print("TOLD", target, error, flush=True)
        time.sleep(0.1)


for word in sys.argv[1:]:
    kind, *rest = word.split(":")
    target = {"udp": datagrams, "tcp": connections, "ask": ask}[kind]
    arguments = [it.replace("=", ":") for it in rest] if kind == "ask" else [int(rest[0])]
    threading.Thread(target=target, args=arguments).start()
