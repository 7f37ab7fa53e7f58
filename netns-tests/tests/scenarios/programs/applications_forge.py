import socket, sys
source, to = sys.argv[1], sys.argv[2]
six = ":" in source
forger = socket.socket(socket.AF_INET6 if six else socket.AF_INET)
forger.settimeout(1)
forger.setsockopt(*((socket.IPPROTO_IPV6, 75) if six else (socket.SOL_IP, 19)), 1)
forger.setsockopt(socket.SOL_SOCKET, 36, 0x15750001)
forger.bind((source, 0))
try:
    forger.connect((to, 8080))
    print("connected")
except OSError as error:
    print("refused", error)
