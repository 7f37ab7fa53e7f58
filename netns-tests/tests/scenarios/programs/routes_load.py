import collections, http.client, sys, threading
host, count, threads = sys.argv[1], int(sys.argv[2]), 4
answers, lock = collections.Counter(), threading.Lock()
def work():
    mine = collections.Counter()
    connection = http.client.HTTPConnection(host, 80, timeout=10)
    for _ in range(count // threads):
        connection.request("GET", "/")
        response = connection.getresponse()
        mine[f"{response.status} {response.read().decode()}"] += 1
    with lock:
        answers.update(mine)
workers = [threading.Thread(target=work) for _ in range(threads)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
for answer, number in answers.items():
    print(number, answer)
