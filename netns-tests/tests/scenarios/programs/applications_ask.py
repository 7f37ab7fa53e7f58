import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
failed = asked = 0
for place in sys.argv[1:]:
    name, port, kind = place.split("/")
    for family in [socket.AF_INET, socket.AF_INET6]:
        asked += 1
        try:
            at = socket.getaddrinfo(name, int(port), family, socket.SOCK_STREAM)[0][4]
            connection = socket.socket(family)
            connection.settimeout(10)
            connection.connect(at)
            if kind == "tls":
                connection = context.wrap_socket(connection, server_hostname=name)
            said = b"ping" if kind == "tcp" else b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            connection.sendall(said)
            heard = b""
            while data := connection.recv(65536):
                heard += data
            good = heard == b"ping" if kind == "tcp" else heard.startswith(b"HTTP/1.1 200") and heard.endswith(b"hello")
        except OSError as error:
            heard, good = error, False
        if not good:
            failed += 1
            print(place, family.name, heard)
print(f"{failed} of {asked} failed")
