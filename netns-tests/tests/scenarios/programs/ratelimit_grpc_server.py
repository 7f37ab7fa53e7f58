import concurrent.futures, grpc
handlers = {"Unary": grpc.unary_unary_rpc_method_handler(lambda request, context: request)}
server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
server.add_insecure_port("[::]:8081")
server.start()
server.wait_for_termination()
