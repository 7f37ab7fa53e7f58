import socket, sys
family = socket.AF_INET6 if sys.argv[2] == "-6" else socket.AF_INET
at = socket.getaddrinfo(sys.argv[1], 7000, family, socket.SOCK_STREAM)[0][4]
connection = socket.socket(family)
connection.settimeout(5)
connection.connect(at)
connection.sendall(b"\0who am I\n")
print(connection.recv(100).decode())
