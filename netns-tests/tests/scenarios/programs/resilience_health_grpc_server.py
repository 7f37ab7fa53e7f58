import concurrent.futures, grpc, os, sys
folder = sys.argv[1]
def check(request, context):
    # HealthCheckResponse { status }: SERVING or NOT_SERVING
    return b"\x08\x01" if os.path.exists(folder + "/well") else b"\x08\x02"
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(check)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)
server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Handler(),))
server.add_insecure_port("0.0.0.0:8081")
server.start()
server.wait_for_termination()
