import socket, sys
text = sys.argv[1].encode().decode("unicode_escape").encode("latin-1")
for place in sys.argv[2:]:
    host, port = place.rsplit("/", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            connection.settimeout(2)
            connection.sendall(text)
            print(place, connection.recv(100))
    except OSError as error:
        print(place, type(error).__name__)
