import socket, sys, time
sock = socket.create_connection((sys.argv[1], 8080), timeout=20)
number = 0
while True:
    line = f"{number}\n".encode()
    sock.sendall(line)
    got = b""
    while len(got) < len(line):
        part = sock.recv(len(line) - len(got))
        if not part:
            sys.exit("closed")
        got += part
    print(number, flush=True)
    number += 1
    time.sleep(0.01)
