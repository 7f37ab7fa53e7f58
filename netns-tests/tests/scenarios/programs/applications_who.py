import socket
server = socket.create_server(("0.0.0.0", 7000))
while True:
    connection, peer = server.accept()
    connection.recv(100)
    connection.sendall(peer[0].encode())
    connection.close()
