import socket, time
while True:
    began = time.monotonic()
    try:
        socket.getaddrinfo("web.prod.mesh.internal", 80, socket.AF_INET)
        said = "found"
    except OSError as error:
        said = f"FAILED: {error}"
    print(said, "%.3f" % (time.monotonic() - began), flush=True)
    time.sleep(0.02)
