import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
connection.sendall(sys.argv[3].encode())
connection.shutdown(socket.SHUT_WR)
heard = b""
while data := connection.recv(65536):
    heard += data
print(heard.decode(), end="")
