import socket, threading
def drain(connection):
    total = 0
    while data := connection.recv(1 << 20):
        total += len(data)
    connection.sendall(str(total).encode())
    connection.close()
listener = socket.create_server(("", 7000))
print("ready", flush=True)
while True:
    threading.Thread(target=drain, args=(listener.accept()[0],), daemon=True).start()
