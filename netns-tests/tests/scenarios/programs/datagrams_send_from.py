import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.bind(("", 7777))
for n in range(int(sys.argv[3])): s.sendto(sys.argv[2].encode(), (sys.argv[1], 8125))
