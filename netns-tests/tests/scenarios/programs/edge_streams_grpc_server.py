import concurrent.futures, grpc
handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
    "Secret": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
    "Both": grpc.stream_stream_rpc_method_handler(lambda requests, context: (it[::-1] for it in requests)),
}
server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
server.add_insecure_port("[::]:8082")
server.start()
server.wait_for_termination()
