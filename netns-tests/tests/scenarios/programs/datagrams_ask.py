import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.settimeout(5)
s.sendto(b"want " + sys.argv[2].encode(), (sys.argv[1], 8125))
print(len(s.recv(65535)))
