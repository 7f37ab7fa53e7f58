import http.client, json, sys, time
host, times, failed = sys.argv[1], [], []
kept = http.client.HTTPConnection(host, 8082, timeout=10)
for number in range(100):
    connection = kept if number % 2 else http.client.HTTPConnection(host, 8082, timeout=10)
    began = time.monotonic()
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        if response.status != 200 or response.read() != b"fine":
            failed.append(response.status)
    except Exception as error:
        failed.append(repr(error))
        kept.close()
    times.append(time.monotonic() - began)
    if connection is not kept:
        connection.close()
times.sort()
print(json.dumps({"failed": failed, "p50": times[50], "p99": times[98]}))
