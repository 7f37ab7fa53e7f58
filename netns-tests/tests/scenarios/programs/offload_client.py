import hashlib, os, socket, sys, threading
kind, address, argument = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
if kind == "tcp":
    sock = socket.create_connection((address, 7000), timeout=30)
    sent, got = hashlib.sha256(), hashlib.sha256()
    def send():
        left = argument
        while left:
            block = os.urandom(min(left, 1 << 16))
            sent.update(block)
            sock.sendall(block)
            left -= len(block)
        sock.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send)
    sender.start()
    total = 0
    while data := sock.recv(1 << 20):
        got.update(data)
        total += len(data)
    sender.join()
    assert sent.digest() == got.digest(), "what came back isn't what was sent"
    print(total)
else:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect((address, 7000))
    sock.send(b"hello")
    assert sock.recv(100) == b"hello"
    if kind == "segments":
        # The kernel gives these to the device as one packet.
        sock.setsockopt(17, 103, argument)
        data = os.urandom(argument * 20 + 7)
        sock.send(data)
        expected = [data[at:at + argument] for at in range(0, len(data), argument)]
    else:
        expected = [os.urandom(argument)]
        sock.send(expected[0])
    got = [sock.recv(1 << 16) for _ in expected]
    assert got == expected, [len(one) for one in got]
    print(sum(map(len, got)))
