import grpc, sys
with grpc.insecure_channel(sys.argv[1] + ":8081") as channel:
    call = channel.unary_unary("/echo.Echo/Once")
    try:
        print("got", call(b"hello", timeout=10).decode())
    except grpc.RpcError as error:
        print("failed", error.code().name)
