import collections, http.client, sys, threading, time
host, rate, seconds, threads = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), 8
answers, lock = collections.Counter(), threading.Lock()
start = time.monotonic()
def work(index):
    connection = http.client.HTTPConnection(host, 8081, timeout=10)
    number = index
    while number < rate * seconds:
        time.sleep(max(0, start + number / rate - time.monotonic()))
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()
        with lock:
            answers[response.status] += 1
        number += threads
workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
print(answers[200], answers[429], sum(answers.values()), time.monotonic() - start)
