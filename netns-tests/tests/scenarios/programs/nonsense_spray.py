import random, socket, ssl, sys
kind, target, file = sys.argv[1:]
data = open(file, "rb").read()
rng = random.Random(7)
def piece():
    size = rng.choice([0, 1, 4, 12, 32, 60, 92, 148, 512, 1400])
    at = rng.randrange(len(data) - 1500)
    head = rng.choice([b"", b"\x01\0\0\0", b"\x02\0\0\0", b"\x03\0\0\0", b"\x04\0\0\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
    return head + data[at:at + size]
sent = 0
if kind == "udp":
    host, port = target.rsplit(":", 1)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(20000):
        sock.sendto(piece(), (host, int(port)))
        sent += 1
else:
    for _ in range(200):
        try:
            if kind == "unix":
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(0.5)
                sock.connect(target)
            else:
                host, port = target.rsplit(":", 1)
                sock = socket.create_connection((host, int(port)), timeout=0.5)
            if kind == "tls":
                context = ssl.create_default_context()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                context.set_alpn_protocols(["h2"])
                sock = context.wrap_socket(sock)
            for _ in range(5):
                sock.sendall(piece() + b"\xff" * 10)
                sent += 1
            sock.close()
        except (OSError, ssl.SSLError):
            pass
print(sent)
