"""Thirty attacks by a user of the host without any privilege, whose processes belong to no service.
FACTS names the host's services, others', and what of the agent's lies where."""

import ctypes
import os
import signal
import socket
import struct
import subprocess

from craft import FACTS, ask, attack, get, packed, run_all

WEB4, WEB6 = FACTS["web"]  # workloads of this host
STATS4, STATS6 = FACTS["stats"]
LEDGER4, LEDGER6 = FACTS["ledger"]  # a service that nobody but `client` may use
OWN4, OWN6 = FACTS["own"]  # the host itself on the overlay
UNDER4, UNDER6 = FACTS["victim"]  # and on the underlay
REMOTE4, REMOTE6 = FACTS["remote"]  # another host's workload
VIRTUAL4, VIRTUAL6 = FACTS["virtual"]  # of `client`
WEB, STATS, LEDGER = 8080, 8125, 9100
UDP, TCP = socket.SOCK_DGRAM, socket.SOCK_STREAM
IP_FREEBIND, IP_TRANSPARENT, IPV6_FREEBIND, IPV6_TRANSPARENT = 15, 19, 78, 75
FREE4 = (socket.IPPROTO_IP, IP_FREEBIND, 1)
FREE6 = (socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)


def speak(source, target, token, port=STATS, kind=UDP, options=(FREE6,), sport=0):
    return ask(target, port, token, kind=kind, bind=(source, sport), options=options)


# As somebody else, by an address that isn't this host's.


@attack(bites=True)
def another_hosts_workload_to_a_service(token):
    """Binds the IPv6 address of a workload elsewhere, and speaks as it to a workload here."""
    return [speak(REMOTE6, STATS6, token)]


@attack(bites=True)
def another_hosts_workload_to_loopback(token):
    """Likewise, to ::1, where the same program listens."""
    return [speak(REMOTE6, "::1", token)]


@attack(bites=True)
def another_hosts_workload_to_the_underlay(token):
    """Likewise, to the host's own address on the underlay."""
    return [speak(REMOTE6, UNDER6, token)]


@attack(bites=True)
def another_hosts_workload_to_the_host(token):
    """Likewise, to the host's own address on the overlay."""
    return [speak(REMOTE6, OWN6, token)]


@attack(bites=True)
def a_service_by_its_virtual_address(token):
    """Speaks from a service's virtual address, as flows within one host do."""
    return [speak(VIRTUAL6, STATS6, token)]


@attack(bites=True)
def an_address_that_nobody_has(token):
    """Speaks from an address of the mesh that belongs to nobody yet."""
    return [speak(FACTS["nobody6"], STATS6, token)]


@attack(bites=True)
def by_a_packets_own_source(token):
    """Names the source packet by packet (IPV6_PKTINFO), rather than by binding."""
    with socket.socket(socket.AF_INET6, UDP) as it:
        it.setsockopt(*FREE6)
        info = packed(REMOTE6) + struct.pack("@I", 0)
        it.sendmsg([token], [(socket.IPPROTO_IPV6, 50, info)], 0, (STATS6, STATS))


@attack()
def by_ipv4(token):
    """The same by IPv4, where the kernel knows what it may send from."""
    return [speak(source, STATS4, token, options=(FREE4,)) for source in (REMOTE4, VIRTUAL4)]


@attack()
def by_a_mapped_address(token):
    """By an IPv6 socket that speaks IPv4."""
    return [speak(f"::ffff:{REMOTE4}", f"::ffff:{STATS4}", token, options=(FREE4, FREE6))]


@attack()
def a_connection_as_another_host(token):
    """Opens a TCP connection from another host's workload; answers go elsewhere."""
    return [speak(REMOTE6, place, token, LEDGER, TCP) for place in (LEDGER6, "::1", UNDER6)]


@attack()
def as_another_host_into_the_overlay(token):
    """Speaks as other hosts' workloads and virtual addresses to others, through the agent."""
    return [speak(it, REMOTE6, token) for it in (VIRTUAL6, FACTS["host_remote"][1], FACTS["nobody6"])]


# As another service of this host.


@attack()
def a_neighbours_workload_into_the_overlay(token):
    """Binds the address of a workload of this host that is another user's, which any user may."""
    pairs = ((STATS4, REMOTE4), (STATS6, REMOTE6), (WEB4, REMOTE4), (WEB6, REMOTE6))
    return [speak(*pair, token, options=()) for pair in pairs]


@attack()
def the_port_of_a_neighbours_flow(token):
    """Likewise, with the source port of a flow that the service has open."""
    return [speak(STATS6, REMOTE6, token, port=7777, options=((socket.SOL_SOCKET, 15, 1),), sport=7776)]


@attack()
def services_that_no_rule_opens(token):
    """Calls services as what it is: a process of the host, which no rule lets in."""
    tcp = [ask(place, LEDGER, token) for place in (*FACTS["virtual_ledger"], *FACTS["remote"])]
    return tcp + [ask(place, STATS, token, kind=UDP) for place in FACTS["virtual_stats"]]


@attack()
def the_web_as_somebody_else(token):
    """Asks the web service by its virtual address, with an identity of its own choice."""
    return [answer for answer in (ask(it, WEB, get(token)) for it in FACTS["virtual_web"]) if served(answer)]


@attack()
def the_proxy_itself(token):
    """Speaks to the proxy's port at every address that it may be behind."""
    places = ("127.0.0.1", "::1", UNDER4, UNDER6, OWN4, OWN6, WEB4, WEB6, *FACTS["virtual_web"])
    return [answer for answer in (ask(it, 15001, get(token)) for it in places) if served(answer)]


# Around the overlay's device.


@attack()
def out_by_another_device(token):
    """Binds its socket to the underlay's device: an overlay packet for the wire."""
    device = (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
    return [ask(it, STATS, token, kind=UDP, options=(device,)) for it in (REMOTE4, REMOTE6, VIRTUAL4)]


@attack()
def out_by_a_preferred_device(token):
    """Asks for the underlay's device by IP_UNICAST_IF, and for no routing at all."""
    index = socket.if_nametoindex("eth0")
    four = ((socket.IPPROTO_IP, 50, struct.pack("!I", index)), (socket.SOL_SOCKET, 5, 1))
    six = ((socket.IPPROTO_IPV6, 76, struct.pack("!I", index)), (socket.SOL_SOCKET, 5, 1))
    return [
        ask(REMOTE4, STATS, token, kind=UDP, options=four),
        ask(REMOTE6, STATS, token, kind=UDP, options=six),
    ]


@attack()
def out_with_an_overlay_source(token):
    """Speaks to a machine of the underlay from an overlay address, which is then seen on the wire."""
    return [speak(source, FACTS["me"][1], token) for source in (STATS6, REMOTE6, VIRTUAL6)]


@attack(bites=True)
def loopback_as_a_device(token):
    """Binds its socket to `lo` and speaks to addresses of the overlay there."""
    device = (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    return [ask(it, STATS, token, kind=UDP, options=(device,)) for it in (REMOTE4, REMOTE6, VIRTUAL4)]


# In the agent's place.


@attack()
def a_share_of_the_tunnels_port(token):
    """Binds the tunnels' port beside the agent, to hear what is for it and to answer."""
    return [bind(UDP, place, 51820) for place in (UNDER4, UNDER6, "127.0.0.1", "0.0.0.0", "::")]


@attack()
def a_share_of_the_proxys_port(token):
    """Listens on the proxy's port at addresses that are nearer to its flows than the agent's."""
    return [bind(TCP, place, 15001) for place in (WEB4, WEB6, *FACTS["virtual_web"], "0.0.0.0", "::")]


@attack()
def the_agents_marks(token):
    """Marks its sockets as the agent does, and asks for the right to any address."""
    wishes = (
        (socket.SOL_SOCKET, socket.SO_MARK, 0x15750001),
        (socket.IPPROTO_IP, IP_TRANSPARENT, 1),
        (socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1),
    )
    return [granted(*wish) for wish in wishes]


@attack()
def the_agents_api(token):
    """Opens the agent's socket, which is for administrators."""
    with socket.socket(socket.AF_UNIX) as it:
        it.connect(FACTS["socket"])
        return ["the agent's socket is open"]


@attack()
def the_agents_keys(token):
    """Reads the agent's keys from disk and from its memory, and its descriptors."""
    agent = f"/proc/{FACTS['agent']}"
    files = [f"{FACTS['state']}/{it}" for it in ("wireguard.key", "tls.pem", "snapshot")]
    return [readable(it) for it in (*files, f"{agent}/mem", f"{agent}/environ", f"{agent}/fd/5")]


@attack()
def the_agent_itself(token):
    """Stops, traces or ends the agent."""
    libc = ctypes.CDLL(None, use_errno=True)
    traced = libc.ptrace(16, FACTS["agent"], 0, 0) == 0
    return ["traced it" if traced else None] + [killed(FACTS["agent"], it) for it in (0, signal.SIGSTOP)]


# In the kernel's.


@attack()
def packets_by_hand(token):
    """Asks for raw and packet sockets."""
    kinds = ((socket.AF_INET, socket.SOCK_RAW, 255), (socket.AF_INET6, socket.SOCK_RAW, 255))
    return [opened(*it) for it in (*kinds, (socket.AF_PACKET, socket.SOCK_RAW, 3))]


@attack()
def the_kernels_tables(token):
    """Deletes the guard, the overlay's routes, rules and addresses."""
    return [done(it) for it in DELETIONS]


@attack()
def a_namespace_of_its_own(token):
    """Becomes root in a user namespace, and tries the same and a cable to the host from there."""
    inside = (*DELETIONS, "ip link add evil0 type veth peer name evil1 netns 1", "ip link set isth0 down")
    return [done(f"unshare -U -r sh -c '{it}'") for it in inside]


@attack()
def listen_as_a_service_elsewhere(token):
    """Listens at addresses of other hosts' workloads and of services, for callers of this host."""
    # A port that no service here has: the kernel gives no other socket of one that is taken.
    port = 9000
    places = (REMOTE6, VIRTUAL6, FACTS["virtual_stats"][1])
    listeners = []
    for place in places:
        for kind in (UDP, TCP):
            it = socket.socket(socket.AF_INET6, kind)
            it.setsockopt(*FREE6)
            it.settimeout(0.2)
            it.bind((place, port))
            if kind == TCP:
                it.listen()
            listeners.append(it)
    for place in places:
        for kind in (UDP, TCP):
            ask(place, port, token, kind=kind, timeout=0.1)
    heard = []
    for it in listeners:
        try:
            heard.append(f"heard {it.recv(100) if it.type == UDP else it.accept()!r}")
        except OSError:
            pass
    return heard


DELETIONS = (
    "nft delete table inet isthmus-isth0",
    "nft flush ruleset",
    "ip route flush dev isth0",
    "ip rule del priority 15100",
    f"ip addr del {OWN4}/32 dev isth0",
)


def served(answer):
    return answer and answer.startswith("HTTP/1.1 200")


def granted(level, option, value):
    family = socket.AF_INET6 if level == socket.IPPROTO_IPV6 else socket.AF_INET
    with socket.socket(family, UDP) as it:
        try:
            it.setsockopt(level, option, value)
        except PermissionError:
            return None
    return f"was granted {level}/{option}"


def bind(kind, place, port):
    with socket.socket(socket.AF_INET6 if ":" in place else socket.AF_INET, kind) as it:
        it.setsockopt(*(FREE6 if ":" in place else FREE4))
        for reuse in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            it.setsockopt(socket.SOL_SOCKET, reuse, 1)
        try:
            it.bind((place, port))
            if kind == TCP:
                it.listen()
        except OSError:
            return None
    return f"has {place} port {port}"


def readable(path):
    try:
        with open(path, "rb") as it:
            return f"read {len(it.read(10))} bytes of {path}"
    except OSError:
        return None


def killed(process, number):
    try:
        os.kill(process, number)
    except PermissionError:
        return None
    return f"signal {number} arrived"


def opened(*kind):
    try:
        socket.socket(*kind).close()
    except PermissionError:
        return None
    return f"opened {kind}"


def done(line):
    result = subprocess.run(["sh", "-c", line], capture_output=True, timeout=5)
    return f"succeeded: {line}" if result.returncode == 0 else None


run_all()
