import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
while True:
    try:
        if sys.argv[2] == "many": s = socket.socket(family, socket.SOCK_DGRAM)
        for n in range(1 if sys.argv[2] == "many" else 100): s.sendto(bytes(int(sys.argv[3])), (sys.argv[1], 8125))
    except OSError: pass
