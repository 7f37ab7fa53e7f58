import grpc, sys
channel = grpc.insecure_channel(f"{sys.argv[1]}:8081")
call = channel.unary_unary("/t.T/Unary")
for _ in range(2):
    try:
        call(b"x", timeout=5)
        print("OK")
    except grpc.RpcError as error:
        fields = dict(error.trailing_metadata())
        print(error.code().name, fields.get("retry-after"), fields.get("grpc-retry-pushback-ms"))
