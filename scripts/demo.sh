# What scripts/up and scripts/down share: the demonstration's names and parts.

demo=/run/isthmus-demo
hosts=(app-1 app-2 web-1)
client_user=41001
web_user=41002

say() { echo "==> $*" >&2; }
title() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { echo "check failed: $*" >&2; exit 1; }
namespace() { echo "isthmus-$1"; }
inside() { local node=$1; shift; nsenter --net="/run/netns/$(namespace "$node")" -- "$@"; }

wait_until() { # what, then a command
    local what=$1
    shift
    for _ in $(seq 200); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.05
    done
    echo "Waited in vain: $what" >&2
    return 1
}

# The wrappers exec, so that the shell's child is the program itself.
background() { # name, then a command
    local name=$1
    shift
    "$@" >"$demo/$name.log" 2>&1 </dev/null &
    echo $! >"$demo/$name.pid"
    disown
}

make_network() {
    local number=10 node
    ip netns add "$(namespace switch)"
    inside switch ip link add br0 type bridge
    inside switch ip link set br0 up
    for node in controller "${hosts[@]}"; do
        ip netns add "$(namespace "$node")"
        inside "$node" ip link set lo up
        ip link add eth0 netns "$(namespace "$node")" type veth peer name "$node" netns "$(namespace switch)"
        inside switch ip link set "$node" master br0 up
        inside "$node" ip addr add "10.77.0.$number/24" dev eth0
        inside "$node" ip link set eth0 up
        number=$((number + 1))
    done
}

start_controller() {
    inside controller "$demo/bin/isthmus-controller" init --state-dir "$demo/controller" --name corp \
        --trust-domain corp.example --address 10.77.0.10:7443 >"$demo/init.log"
    background controller nsenter --net="/run/netns/$(namespace controller)" -- \
        "$demo/bin/isthmus-controller" run --state-dir "$demo/controller"
    wait_until "the controller answers" as_operator status
}

start_host() {
    mkdir "$demo/$1"
    printf 'state_dir = "%s"\nsocket = "%s"\n' "$demo/$1/state" "$demo/$1/agent.sock" >"$demo/$1/agent.toml"
    background "$1" nsenter --net="/run/netns/$(namespace "$1")" -- \
        "$demo/bin/isthmus-agent" run --settings "$demo/$1/agent.toml"
    wait_until "the agent of $1 answers" on_host "$1" status
}

join_host() {
    as_operator token create --host "$1" -o json | jq -r .token | on_host "$1" join - --name "$1"
}

start_web() {
    mkdir "$demo/web"
    chown "$web_user" "$demo/web"
    cat >"$demo/web/nginx.conf" <<CONF
daemon off; master_process off; pid $demo/web/pid; error_log stderr;
events {}
http {
    access_log $demo/web/access.log;
    client_body_temp_path $demo/web/t; proxy_temp_path $demo/web/t; fastcgi_temp_path $demo/web/t;
    uwsgi_temp_path $demo/web/t; scgi_temp_path $demo/web/t;
    server {
        listen 8080; listen [::]:8080;
        location / { return 200 "Hello from web-1, to \$http_x_isthmus_identity\n"; }
    }
}
CONF
    background nginx nsenter --net="/run/netns/$(namespace web-1)" -- \
        setpriv --reuid=$web_user --regid=$web_user --clear-groups -- nginx -e stderr -c "$demo/web/nginx.conf"
    wait_until "nginx listens" inside web-1 nc -z 127.0.0.1 8080
}

as_operator() { inside controller "$demo/bin/agentctl" --credentials "$demo/controller/operator/operator.toml" "$@"; }
on_host() { local host=$1; shift; inside "$host" "$demo/bin/agentctl" --socket "$demo/$host/agent.sock" "$@"; }

# A process of the service `client` on app-1, which asks the mesh's DNS.
as_client() {
    local dns
    dns=$(on_host app-1 status -o json | jq -r '[.addresses[] | select(contains("."))][0]')
    echo "nameserver $dns" >"$demo/app-1/resolv.conf"
    inside app-1 unshare -m sh -c 'mount --bind "$0" /etc/resolv.conf && exec "$@"' "$demo/app-1/resolv.conf" \
        env -u http_proxy -u all_proxy setpriv --reuid=$client_user --regid=$client_user --clear-groups -- "$@"
}

how_to_go_on() {
    cat <<TXT

Go on:
    . scripts/demo.sh                                      # then, in this shell:
    as_operator status                                     # agentctl with the operator's credentials
    as_client curl http://web.prod.mesh.internal:8080/     # a process of the service "client" on app-1
    on_host web-1 flows                                    # who talks to web-1, and which rule decided
    as_operator apply -f configs/demo.toml             # after you changed it
    scripts/down                                           # ends it all
TXT
}
