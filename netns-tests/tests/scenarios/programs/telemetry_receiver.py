import http.server
def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128: return value, at
def fields(data):
    at, found = 0, {}
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0: value, at = varint(data, at)
        elif key & 7 == 1: value, at = data[at:at + 8], at + 8
        elif key & 7 == 2:
            size, at = varint(data, at)
            value, at = data[at:at + size], at + size
        else: raise ValueError(key)
        found.setdefault(key >> 3, []).append(value)
    return found
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
        body = self.rfile.read(int(self.headers["content-length"]))
        for resource in fields(body)[1]:
            resource = fields(resource)
            named = [fields(it) for it in fields(resource[1][0])[1]]
            host = [fields(it[2][0])[1][0].decode() for it in named if it[1] == [b"host.name"]][0]
            for span in [it for scope in resource[2] for it in fields(scope)[2]]:
                span = fields(span)
                parent = span.get(4, [b""])[0].hex() or "none"
                words = ["span", span[1][0].hex(), span[2][0].hex(), parent, str(span[6][0]), host]
                # In one piece: two agents may be heard at a time.
                print(" ".join(words) + "\n", end="", flush=True)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("0.0.0.0", 4318), Handler).serve_forever()
