import socket, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = ("asked by " + self.headers.get("x-isthmus-identity", "?") + "\n").encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
log = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
log.bind(("0.0.0.0", 5140))
def listen():
    while True:
        text, source = log.recvfrom(2048)
        print(text.decode(), "from", source[0], flush=True)
threading.Thread(target=listen, daemon=True).start()
print("listens", flush=True)
Server(("::", 8080), Handler).serve_forever()
