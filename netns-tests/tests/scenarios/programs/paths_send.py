import socket, sys
sock = socket.create_connection((sys.argv[1], 7000), timeout=60)
left = int(sys.argv[2])
while left:
    block = bytes(min(left, 1 << 16))
    sock.sendall(block)
    left -= len(block)
sock.shutdown(socket.SHUT_WR)
print(sock.recv(100).decode(), flush=True)
