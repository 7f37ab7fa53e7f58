import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("10.9.0.1", 53))
print("ready")
while True:
    query, client = sock.recvfrom(4096)
    end = query.index(0, 12) + 5
    print(query[12:end])
    answer = query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:end]
    sock.sendto(answer + b"\xc0\x0c\0\1\0\1\0\0\0\x05\0\4\xc0\0\2\x4d", client)
