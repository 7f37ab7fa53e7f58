import socket, sys, threading
log = open(sys.argv[1], "ab", buffering=0)
def serve(family, address):
    s = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    s.bind((address, 8125))
    while True:
        data, sender = s.recvfrom(65535)
        log.write(data + b"\n")
        if data.startswith(b"want "): s.sendto(b"x" * int(data[5:]), sender)
threading.Thread(target=serve, args=(socket.AF_INET6, "::")).start()
serve(socket.AF_INET, "0.0.0.0")
