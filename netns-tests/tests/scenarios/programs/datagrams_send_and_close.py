import socket, sys, time
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
for n in range(int(sys.argv[2])):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.sendto(b"%s%d" % (sys.argv[1].encode(), n), (sys.argv[1], 8125))
    s.close()
    time.sleep(0.0002)
