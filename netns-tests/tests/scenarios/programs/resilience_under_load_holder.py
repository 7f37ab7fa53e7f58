import grpc, itertools, queue, signal, socket, sys, threading
def say(line):
    # In one piece: two threads speak.
    print(line + "\n", end="", flush=True)
web, stream = sys.argv[1], sys.argv[2]
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
def hold_websocket():
    connection = socket.create_connection((web, 8081), timeout=10)
    connection.sendall(b"GET /ws HTTP/1.1\r\nHost: api\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    file = connection.makefile("rb")
    assert b" 101 " in file.readline()
    while file.readline().strip():
        pass
    for number in itertools.count():
        message = number.to_bytes(8, "big")
        connection.sendall(message)
        assert file.read(8) == message
        if number == 0:
            say("websocket started")
        if stop.wait(0.02):
            return say(f"websocket {number}")
def hold_stream():
    with grpc.insecure_channel(f"{stream}:8082") as channel:
        sent = queue.Queue()
        answers = channel.stream_stream("/echo.Echo/Hold")(iter(sent.get, None))
        for number in itertools.count():
            message = b"%d" % number
            sent.put(message)
            assert next(answers) == message
            if number == 0:
                say("stream started")
            if stop.wait(0.02):
                sent.put(None)
                return say(f"stream {number}")
for work in (hold_websocket, hold_stream):
    threading.Thread(target=work).start()
stop.wait()
