import socket, sys
own, port, text = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode().decode("unicode_escape")
it = socket.socket()
it.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
it.settimeout(5)
it.bind(("127.0.0.1", own))
try:
    it.connect(("127.0.0.1", port))
    it.sendall(text.encode("latin-1"))
    print(it.recv(300))
except OSError as error:
    print(type(error).__name__)
