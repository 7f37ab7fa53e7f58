import http.client, statistics, sys, time
connection = http.client.HTTPConnection(sys.argv[1], 8081, timeout=10)
times = []
for _ in range(int(sys.argv[2])):
    began = time.perf_counter()
    connection.request("GET", "/")
    connection.getresponse().read()
    times.append(time.perf_counter() - began)
print(int(statistics.median(times) * 1e6))
