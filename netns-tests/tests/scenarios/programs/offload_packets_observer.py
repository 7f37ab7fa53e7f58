import hashlib, json, socket, threading, zlib
V4, V6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
SO_RCVBUFFORCE = 33
printing = threading.Lock()
def see(sock):
    while True:
        data, control, _, peer = sock.recvmsg(1 << 17, 4096)
        tos, options = 0, []
        for level, kind, value in control:
            if (level, kind) in [(V4, socket.IP_TOS), (V6, socket.IPV6_TCLASS)]:
                tos = value[0]
            else:
                options.append([kind, value.hex()])
        with printing:
            print(json.dumps([len(data), zlib.crc32(data), tos, options]), flush=True)
        sock.sendto(b"seen", peer)
def sink(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=digest, args=(connection,), daemon=True).start()
def digest(connection):
    got = hashlib.sha256()
    while data := connection.recv(1 << 20):
        got.update(data)
    connection.sendall(got.digest())
    connection.close()
threads = []
for family, level, wishes in [
    (socket.AF_INET, V4, [socket.IP_RECVTOS, socket.IP_RECVOPTS]),
    (socket.AF_INET6, V6, [socket.IPV6_RECVTCLASS, socket.IPV6_RECVHOPOPTS, socket.IPV6_RECVDSTOPTS]),
]:
    sock, listener = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family)
    for one in sock, listener:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(V6, socket.IPV6_V6ONLY, 1)
        one.bind(("", 7000))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    for wish in wishes:
        sock.setsockopt(level, wish, 1)
    listener.listen()
    threads += [threading.Thread(target=see, args=(sock,)), threading.Thread(target=sink, args=(listener,))]
for thread in threads:
    thread.start()
print("ready", flush=True)
