# What scripts/package consists of; to be sourced, at the root of the tree.

# Installs what packing needs.
need_tools() {
    local need missing=()
    for need in dh:debhelper rpmbuild:rpm jq:jq python3:python3 cc:build-essential; do
        command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || { echo "Missing packages: ${missing[*]}. Install them, or run this as root." >&2; exit 1; }
    echo "Installing ${missing[*]}" >&2
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# A release's version is its tag; between releases the commit's, which sorts before the next release.
version() {
    local base
    base=$(cargo metadata --no-deps --format-version 1 | jq -r '.packages[] | select(.name == "isthmus-agent").version')
    if [ "$(git tag --points-at HEAD | grep -Fx "v$base")" ]; then
        echo "$base"
    else
        git log -1 --date=format-local:%Y%m%d%H%M%S --format="$base~git%cd.%h"
    fi
}

# Manual pages and completion, by the programs themselves.
documents() {
    local into=$1 program
    for program in isthmus-agent isthmus-controller agentctl; do
        "$into/bin/$program" man "$into/man"
    done
    "$into/bin/agentctl" completion bash >"$into/completion/agentctl"
    "$into/bin/agentctl" completion zsh >"$into/completion/_agentctl"
    "$into/bin/agentctl" completion fish >"$into/completion/agentctl.fish"
}

# Who wrote what is in the programs.
notices() {
    local into=$1 package
    cargo metadata --locked --format-version 1 --filter-platform x86_64-unknown-linux-gnu >"$into.json"
    for package in isthmus-agent:isthmus-agent isthmus-controller:isthmus-controller isthmus-ctl:agentctl; do
        mkdir -p "$into/${package#*:}"
        python3 packaging/notices.py "${package%:*}" <"$into.json" >"$into/${package#*:}/NOTICES"
    done
    rm "$into.json"
}
