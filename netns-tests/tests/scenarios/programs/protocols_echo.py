import socket, sys, threading
server = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
def attend(connection):
    first = True
    while data := connection.recv(65536):
        if first:
            print(data[:200], flush=True)
        first = False
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
while True:
    threading.Thread(target=attend, args=[server.accept()[0]]).start()
