import socket, sys, threading
def tcp(family, address):
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, 7000))
    listener.listen()
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()
def echo(connection):
    while data := connection.recv(1 << 20):
        connection.sendall(data)
    connection.close()
def udp(family, address):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((address, 7000))
    while True:
        data, peer = sock.recvfrom(1 << 16)
        sock.sendto(data, peer)
families = {".": socket.AF_INET, ":": socket.AF_INET6}
for kind, address in [a.split("=") for a in sys.argv[1:]]:
    family = families[":" if ":" in address else "."]
    threading.Thread(target={"tcp": tcp, "udp": udp}[kind], args=(family, address)).start()
print("ready", flush=True)
