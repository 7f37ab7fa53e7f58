# Debian machines for trying the packages: systemd-nspawn, each with a network namespace of its own on a
# bridge; to be sourced. `machines` is the folder for all of it; `lab` the prefix of all names.

machines_need() {
    local need missing=()
    for need in debootstrap:debootstrap systemd-nspawn:systemd-container ip:iproute2 nsenter:util-linux; do
        command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# A small Debian 12, once: the lower half of every machine's tree.
machines_root() {
    local packages=systemd,systemd-sysv,systemd-resolved,dbus,libpam-systemd,polkitd,iproute2,iputils-ping,nftables,procps,curl,nginx-light,bash-completion
    [ "$(cat "$root/made" 2>/dev/null)" != "$packages" ] || return 0
    echo "Making a Debian system in $root (two minutes, once)" >&2
    rm -rf "$root"
    debootstrap --variant=minbase --include="$packages" \
        bookworm "$root" >"$machines/debootstrap.log" 2>&1 || { tail "$machines/debootstrap.log" >&2; return 1; }
    rm -f "$root/etc/nginx/sites-enabled/default"
    echo "$packages" >"$root/made"
}

# Where all underlay links end.
network_up() {
    # As udev makes it: a machine of ours has no udev.
    [ -e "$machines/tun" ] || mknod -m 666 "$machines/tun" c 10 200
    ip netns add "$lab-net"
    ip -n "$lab-net" link add br0 type bridge
    ip -n "$lab-net" link set br0 up
    ip -n "$lab-net" link set lo up
}

# boot NAME ADDRESS: with a fresh namespace, as a real boot has: rules and routes don't outlive it.
boot() {
    local name=$1 address=$2 half
    local here=$machines/$name
    mkdir -p "$here"/{upper,work,tree}
    mountpoint -q "$here/tree" \
        || mount -t overlay overlay -o "lowerdir=$root,upperdir=$here/upper,workdir=$here/work" "$here/tree"
    echo "$name" >"$here/tree/etc/hostname"
    [ -e "$here/tree/etc/machine-id" ] || : >"$here/tree/etc/machine-id"
    ip netns del "$lab-$name" 2>/dev/null || true
    ip -n "$lab-net" link del "$name" 2>/dev/null || true
    ip netns add "$lab-$name"
    ip -n "$lab-net" link add "$name" type veth peer name eth0 netns "$lab-$name"
    ip -n "$lab-net" link set "$name" master br0 up
    ip -n "$lab-$name" address add "$address/24" dev eth0
    ip -n "$lab-$name" link set eth0 up
    ip -n "$lab-$name" link set lo up
    for half in unified systemd; do mkdir -p "/sys/fs/cgroup/$half/$lab-$name"; done
    (
        for half in unified systemd; do echo "$BASHPID" >"/sys/fs/cgroup/$half/$lab-$name/cgroup.procs"; done
        SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec setsid systemd-nspawn -q -D "$here/tree" --register=no --keep-unit -b \
            --machine="$name" --network-namespace-path="/run/netns/$lab-$name" --bind="$machines/tun:/dev/net/tun" \
            --console=read-only --capability=all --system-call-filter="bpf keyctl add_key @privileged"
    ) >"$here/console" 2>&1 </dev/null &
    echo $! >"$here/nspawn"
    await 30 "$name is up" booted "$name"
}

booted() {
    local state
    pid_of "$1" >/dev/null || return 1
    state=$(on "$1" systemctl is-system-running 2>/dev/null) || true
    [ "$state" = running ] || [ "$state" = degraded ]
}

# The machine's first process.
pid_of() { pgrep -P "$(cat "$machines/$1/nspawn")"; }

# on NAME COMMAND...: runs it there, as root.
on() {
    local pid
    pid=$(pid_of "$1") || { echo "$1 doesn't run" >&2; return 1; }
    shift
    nsenter -t "$pid" -m -p -u -i -n -C -r -w env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"
}

# off NAME: shuts it down.
off() {
    local pid name=$1
    pid=$(pid_of "$name") || return 0
    kill -RTMIN+4 "$pid"
    await 30 "$name is off" gone "$(cat "$machines/$name/nspawn")"
}

gone() { ! kill -0 "$1" 2>/dev/null; }

# await SECONDS WHAT COMMAND...: until it succeeds.
await() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ $SECONDS -lt $end ] || { echo "Waited in vain: $what" >&2; return 1; }
        sleep 0.1
    done
}

# Ends all machines, and leaves nothing of them.
machines_down() {
    local here name half
    for here in "$machines"/*/nspawn; do
        [ -e "$here" ] || continue
        here=${here%/nspawn} name=${here%/nspawn}
        name=${name##*/}
        off "$name" || kill -KILL "$(pid_of "$name")" 2>/dev/null || true
        umount -R "$here/tree" 2>/dev/null || true
        ip netns del "$lab-$name" 2>/dev/null || true
        for half in unified systemd; do
            find "/sys/fs/cgroup/$half/$lab-$name" -depth -type d -exec rmdir {} \; 2>/dev/null || true
        done
        rm -rf "$here"
    done
    ip netns del "$lab-net" 2>/dev/null || true
}
