import concurrent.futures, grpc, sys, time
def unary(request, context):
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now: 50 %")
    if request == b"slow":
        time.sleep(5)
    context.set_trailing_metadata((("x-after", "yes"),))
    caller = dict(context.invocation_metadata()).get("x-isthmus-identity", "nobody")
    return request + b" for " + caller.encode()
def client_stream(requests, context):
    return str(sum(len(request) for request in requests)).encode()
def server_stream(request, context):
    for number in range(int(request)):
        yield str(number).encode()
def both(requests, context):
    for request in requests:
        yield request[::-1]
handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Up": grpc.stream_unary_rpc_method_handler(client_stream),
    "Down": grpc.unary_stream_rpc_method_handler(server_stream),
    "Both": grpc.stream_stream_rpc_method_handler(both),
    "Secret": grpc.unary_unary_rpc_method_handler(unary),
}
server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
server.add_insecure_port(f"[::]:{sys.argv[1]}")
server.start()
server.wait_for_termination()
