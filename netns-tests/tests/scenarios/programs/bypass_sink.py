import socket, sys, threading
def serve(port):
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        connection = server.accept()[0]
        threading.Thread(target=attend, args=[port, connection]).start()
def attend(port, connection):
    try:
        while data := connection.recv(65536):
            print(port, data[:300], flush=True)
            if b" HTTP/" in data:
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    except ConnectionError:
        pass
for port in map(int, sys.argv[1:]):
    threading.Thread(target=serve, args=[port]).start()
