import os, socket, sys, threading
name, port = sys.argv[1], int(sys.argv[2])
def attend(connection):
    try:
        while data := connection.recv(65536):
            fields = [it for it in data.split(b"\r\n") if it.lower().startswith(b"x-isthmus-identity")]
            body = name.encode() + b" " + b"".join(fields)
            if b" HTTP/" in data:
                body = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            connection.sendall(body)
    except OSError:
        pass
server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
if len(sys.argv) > 3:
    os.setuid(int(sys.argv[3]))
print("listens", flush=True)
while True:
    threading.Thread(target=attend, args=[server.accept()[0]], daemon=True).start()
