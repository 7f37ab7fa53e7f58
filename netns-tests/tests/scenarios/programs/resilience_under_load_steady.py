import collections, http.client, signal, sys, threading, time
host, stop = sys.argv[1], threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
answers, lock = collections.Counter(), threading.Lock()
def connect():
    while True:
        connection = http.client.HTTPConnection(host, 8081, timeout=10)
        try:
            connection.connect()
            return connection
        except OSError:
            time.sleep(0.05)
def work(kept):
    mine, connection = collections.Counter(), connect()
    while not stop.is_set():
        if connection.sock is None or not kept:
            connection.close()
            connection = connect()
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            response.read()
            mine[f"{response.status}"] += 1
        except Exception as error:
            mine[f"failed: {error!r}"] += 1
            connection.close()
    with lock:
        answers.update(mine)
workers = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(6)]
[worker.start() for worker in workers]
print("started", flush=True)
stop.wait()
[worker.join() for worker in workers]
for answer, number in answers.items():
    print(number, answer)
