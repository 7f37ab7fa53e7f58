"""What systemd does for a unit with FileDescriptorStoreMax= and Restart=always.

service_manager.py HOLD PROGRAM ARGUMENT...

Starts the program again whenever it dies, but not while the file HOLD exists. Keeps the descriptors that it gives
(sd_notify: FDSTORE=1, FDSTOREREMOVE=1), and hands them to the next process. Prints each process's id.
"""

import array
import ctypes
import os
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1
FIRST = 3

hold, program = sys.argv[1], sys.argv[2:]
path = hold + ".notify"
notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notices.bind(path)
notices.settimeout(0.02)
kept = []


def start():
    child = os.fork()
    if child:
        print("started", child, flush=True)
        return child
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    notices.detach()
    # Above all others first, so that none is overwritten by another.
    high = [os.dup2(fd, 200 + at) for at, (_, fd) in enumerate(kept)]
    for at, fd in enumerate(high):
        os.dup2(fd, FIRST + at)
    os.closerange(FIRST + len(high), 256)
    os.environ["NOTIFY_SOCKET"] = path
    if kept:
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDS"] = str(len(kept))
        os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in kept)
    os.execvp(program[0], program)


def hear():
    try:
        text, ancillary, _, _ = notices.recvmsg(4096, 4096)
    except TimeoutError:
        return
    words = dict(line.split("=", 1) for line in text.decode().splitlines() if "=" in line)
    for _, _, data in ancillary:
        descriptors = array.array("i")
        descriptors.frombytes(data)
        kept.extend((words.get("FDNAME", "stored"), fd) for fd in descriptors)
    if words.get("FDSTOREREMOVE") == "1":
        for gone in [one for one in kept if one[0] == words.get("FDNAME")]:
            os.close(gone[1])
            kept.remove(gone)


agent = start()
while True:
    hear()
    if agent and os.waitpid(agent, os.WNOHANG)[0]:
        agent = None
    if not agent and not os.path.exists(hold):
        agent = start()
