import socket, sys, time
text = sys.argv[1].encode().decode("unicode_escape").encode("latin-1")
for place in sys.argv[2:]:
    host, port = place.rsplit("/", 1)
    began = time.monotonic()
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.settimeout(5)
            connection.sendall(text)
            said = connection.recv(300)
    except OSError as error:
        said = type(error).__name__ + " " + str(error)
    print(place, said, "late" if time.monotonic() - began > 4 else "")
