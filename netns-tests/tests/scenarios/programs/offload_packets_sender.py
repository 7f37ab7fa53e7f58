import errno, hashlib, json, os, random, signal, socket, struct, sys, zlib
SO_SNDBUFFORCE, UDP_SEGMENT = 32, 103
V4, V6, TCP, UDP = socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_TCP, socket.IPPROTO_UDP
HOP_BY_HOP, DESTINATION = socket.IPV6_HOPOPTS, socket.IPV6_DSTOPTS
kind, address, agent = sys.argv[1], sys.argv[2], int(sys.argv[3])
v6 = ":" in address
family = socket.AF_INET6 if v6 else socket.AF_INET
expected = []

def udp():
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 16 << 20)
    sock.connect((address, 7000))
    sock.settimeout(5)
    return sock
def seen(sock, count):
    """Waits for the observer: whose a flow is can be told only while there is a socket."""
    for _ in range(count):
        sock.recv(10)
def expect(data, tos=0, options=()):
    expected.append([len(data), zlib.crc32(data), tos, list(options)])
def send(sock, data, **kwargs):
    sock.send(data)
    expect(data, **kwargs)
    seen(sock, 1)
def send_segments(sock, size, count, **kwargs):
    data = os.urandom(size * count - size // 2)
    sock.send(data)
    for at in range(0, len(data), size):
        expect(data[at:at + size], **kwargs)
    seen(sock, count)

def total(data):
    data += b"\0" * (len(data) % 2)
    value = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xffff) + (value >> 16)
    return value
def packet(sock, protocol, segment, field, identification, spoil=0):
    """A hand-made one of a socket's flow; `spoil` is added to its checksum."""
    source, destination = (socket.inet_pton(family, a[0]) for a in (sock.getsockname(), sock.getpeername()))
    pseudo = source + destination + struct.pack("!II", len(segment), protocol)
    value = (~total(pseudo + segment) & 0xffff) ^ spoil or 0xffff
    segment = segment[:field] + struct.pack("!H", value) + segment[field + 2:]
    if v6:
        head = struct.pack("!IHBB", 6 << 28, len(segment), protocol, 64)
    else:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), identification, 0, 64, protocol, 0)
    return head + source + destination + segment
def datagram(sock, data, identification, spoil=0):
    ports = sock.getsockname()[1], 7000
    return packet(sock, UDP, struct.pack("!HHHH", *ports, 8 + len(data), 0) + data, 6, identification, spoil)
def send_raw(packets):
    """All at once, as far as the agent can tell."""
    sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    os.kill(agent, signal.SIGSTOP)
    try:
        for one in packets:
            sock.sendto(one, (address, 0))
    finally:
        os.kill(agent, signal.SIGCONT)

def classes():
    for tos in [0, 1, 2, 3, 0x29, 0xba, 0xff]:
        sock = udp()
        sock.setsockopt(*(V6, socket.IPV6_TCLASS) if v6 else (V4, socket.IP_TOS), tos)
        send(sock, os.urandom(700), tos=tos)
        sock.setsockopt(UDP, UDP_SEGMENT, 500)
        send_segments(sock, 500, 20, tos=tos)
def options():
    # No operation and a stream identifier; the last is the end.
    value = bytes([1, 1, 136, 4, 0, 9, 0, 0])
    for size in [0, 100, 1300, 5000]:
        sock = udp()
        sock.setsockopt(V4, socket.IP_OPTIONS, value)
        for _ in range(3):
            send(sock, os.urandom(size), options=[[socket.IP_RECVOPTS, value.hex()]])
def extensions():
    # Padding; the first byte becomes the next header's kind.
    value = bytes([0, 0, 1, 4, 0, 0, 0, 0])
    seen_as = lambda last: bytes([UDP if last else socket.IPPROTO_DSTOPTS]).hex() + value[1:].hex()
    for kinds in [[HOP_BY_HOP], [DESTINATION], [HOP_BY_HOP, DESTINATION]]:
        for size in [0, 100, 1200, 5000]:
            sock = udp()
            for kind in kinds:
                sock.setsockopt(V6, kind, value)
            for _ in range(3):
                options = [[kind, seen_as(kind == kinds[-1])] for kind in kinds]
                send(sock, os.urandom(size), options=options)
def large():
    sock = udp()
    for size in [1392, 1393, 1500, 9000, 40000, 65507, 0, 65507, 1]:
        send(sock, os.urandom(size))
def segments():
    for size in [1, 7, 536, 1000, 1200, 1372]:
        sock = udp()
        sock.setsockopt(UDP, UDP_SEGMENT, size)
        for count in [2, 40, 63, 64, 65, 100, 128]:
            if size * count <= 65000:
                send_segments(sock, size, count)
def narrow():
    sock = udp()
    # The kernel forbids to fragment what fits the device. One that doesn't fit the path is lost;
    # it's told, and fragments the next.
    for size in [1, 1100, 1180, 1300, 1372, 3000, 9000, 40000]:
        while True:
            try:
                send(sock, os.urandom(size))
                break
            except OSError as error:
                assert error.errno == errno.EMSGSIZE, error
                expected.pop()
def order():
    sock = udp()
    send(sock, b"first")
    rows = [(number, struct.pack("!I", number) + os.urandom(996)) for number in range(200)]
    dice = random.Random(3)
    for at in range(199):
        if dice.random() < 0.2:
            rows[at], rows[at + 1] = rows[at + 1], rows[at]
    rows = [row for row in rows for _ in range(1 if dice.random() < 0.8 else 2)]
    send_raw(datagram(sock, data, number) for number, data in rows)
    for _, data in rows:
        expect(data)
    seen(sock, len(rows))
def broken():
    sock = udp()
    send(sock, b"first")
    rows = [(os.urandom(1000), 0x1100 if number % 5 == 2 else 0) for number in range(200)]
    send_raw(datagram(sock, data, number, spoil) for number, (data, spoil) in enumerate(rows))
    for data, spoil in rows:
        if not spoil:
            expect(data)
    seen(sock, 160)
def broken_tcp():
    sock = socket.create_connection((address, 7000), timeout=10)
    ports = sock.getsockname()[1], 7000
    head = lambda at: struct.pack("!HHIIBBHHH", *ports, at, 1, 0x50, 0x10, 500, 0, 0)
    text = b"never to be seen"
    rows = [head(at * len(text)) + text for at in range(40)]
    send_raw(packet(sock, TCP, one, 16, at, 0x1100) for at, one in enumerate(rows))
    # The connection takes no notice.
    sock.sendall(b"data")
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(32) == hashlib.sha256(b"data").digest()
def tcp():
    sock = socket.create_connection((address, 7000), timeout=30)
    digest = hashlib.sha256()
    for _ in range(160):
        block = os.urandom(1 << 16)
        digest.update(block)
        sock.sendall(block)
    # struct tcp_info: which options are in use.
    options = sock.getsockopt(TCP, socket.TCP_INFO, 8)[5]
    sock.shutdown(socket.SHUT_WR)
    answer = b""
    while piece := sock.recv(64):
        answer += piece
    assert answer == digest.digest(), "what came isn't what was sent"
    expected.append({"timestamps": bool(options & 1), "sack": bool(options & 2), "ecn": bool(options & 8)})
globals()[kind]()
print(json.dumps(expected))
