import grpc, queue, sys
channel = grpc.insecure_channel(sys.argv[1])
unary = channel.unary_unary("/t.T/Unary")
answer, call = unary.with_call(b"hello", timeout=10)
print("unary", answer.decode(), dict(call.trailing_metadata()).get("x-after"))
print("up", channel.stream_unary("/t.T/Up")(iter([b"a" * 100_000] * 20), timeout=20).decode())
print("down", [item.decode() for item in channel.unary_stream("/t.T/Down")(b"5", timeout=10)])
pending = queue.Queue()
def ask():
    while (item := pending.get()) is not None:
        yield item
answers = channel.stream_stream("/t.T/Both")(ask(), timeout=10)
for word in [b"one", b"two", b"three"]:
    pending.put(word)
    print("both", next(answers).decode())
pending.put(None)
print("both", list(answers))
def fails(name, request, timeout=10):
    try:
        channel.unary_unary(name)(request, timeout=timeout)
        print(name, "passed")
    except grpc.RpcError as error:
        print(name, error.code().name, error.details())
fails("/t.T/Unary", b"fail")
fails("/t.T/Unary", b"slow", timeout=0.5)
fails("/t.T/None", b"")
fails("/t.T/Secret", b"")
