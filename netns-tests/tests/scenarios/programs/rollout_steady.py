import collections, http.client, signal, sys, threading, time
host, stop = sys.argv[1], threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
answers, lock = collections.Counter(), threading.Lock()
def work():
    mine = collections.Counter()
    connection = http.client.HTTPConnection(host, 80, timeout=10)
    while not stop.is_set():
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            mine[f"{response.status} {response.read().decode()}"] += 1
        except Exception as error:
            mine[f"failed: {error!r}"] += 1
            connection = http.client.HTTPConnection(host, 80, timeout=10)
        time.sleep(0.005)
    with lock:
        answers.update(mine)
workers = [threading.Thread(target=work) for _ in range(8)]
[worker.start() for worker in workers]
print("started", flush=True)
stop.wait()
[worker.join() for worker in workers]
for answer, number in answers.items():
    print(number, answer)
