import grpc, sys
credentials = grpc.ssl_channel_credentials(open(sys.argv[1], "rb").read())
named = [("grpc.ssl_target_name_override", "calls.example"), ("grpc.default_authority", "calls.example")]
channel = grpc.secure_channel("10.9.0.11:443", credentials, options=named)
print(channel.unary_unary("/t.T/Unary")(b"hello", timeout=10).decode())
print([item.decode() for item in channel.stream_stream("/t.T/Both")(iter([b"one", b"two"]), timeout=10)])
try:
    channel.unary_unary("/t.T/Secret")(b"", timeout=10)
except grpc.RpcError as error:
    print(error.code())
