import socket, ssl, sys, threading, time
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1] + ".crt", sys.argv[1] + ".key")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
def attend(connection, kind):
    try:
        if kind == "tls":
            connection = context.wrap_socket(connection, server_side=True)
        said = connection.recv(65536)
        connection.sendall(said if kind == "tcp" else ANSWER)
        connection.close()
    except OSError:
        pass
def listen(address, port, kind):
    if address == "*":
        server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.create_server((address, port), family=family)
    while True:
        threading.Thread(target=attend, args=[server.accept()[0], kind], daemon=True).start()
for place in sys.argv[2:]:
    address, port, kind = place.split("/")
    threading.Thread(target=listen, args=[address, int(port), kind], daemon=True).start()
print("listens", flush=True)
time.sleep(600)
