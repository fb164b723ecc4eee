#!/usr/bin/env bash
# Two servers and a client, each behind a router of its own that translates addresses, and a relay that all
# of them reach. Says who talks directly and who by the relay, and whether the answer is that of one process.
#
# For developers: it needs root, iproute2 and nftables, and is no part of what a change must pass.
#
#   tests/nat/run.sh [UMBEL [KIND]]     the binary (target/debug/umbel), and the routers:
#       cone        a port is translated to the same one wherever it goes to, as by most routers at home
#       symmetric   to another one for each destination, as by some providers
#       private     as cone, with a private swarm, which speaks TCP alone
#   KEEP=1          keeps the logs
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
umbel=$(realpath "${1:-$here/../../target/debug/umbel}")
kind=${2:-cone}
model=$here/../fixtures/checkpoints/llama
case $kind in
    cone | private) masquerade=masquerade ;;
    symmetric) masquerade="masquerade fully-random" ;;
    *) echo "cone, symmetric or private, not $kind" >&2; exit 2 ;;
esac
[ "$(id -u)" = 0 ] || { echo "run it as root: it makes network namespaces" >&2; exit 2; }
for tool in ip nft; do
    command -v "$tool" >/dev/null || { echo "missing: $tool (iproute2, nftables)" >&2; exit 2; }
done

scratch=$(mktemp -d)
started=()
hosts=(public router-a host-a router-b host-b router-c host-c)

end() {
    for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
    wait 2>/dev/null || true
    for host in "${hosts[@]}"; do ip netns del "umbel-$host" 2>/dev/null || true; done
    [ -n "${KEEP:-}" ] && echo "logs in $scratch" || rm -rf "$scratch"
}
trap end EXIT

inside() {
    local host=$1
    shift
    ip netns exec "umbel-$host" "$@"
}

# The public segment is a bridge in a namespace of its own, where the relay runs too.
for host in "${hosts[@]}"; do
    ip netns add "umbel-$host"
    inside "$host" ip link set lo up
done
inside public ip link add segment type bridge
inside public ip address add 203.0.113.10/24 dev segment
inside public ip link set segment up

# A router with one side on the public segment and one in a private network, the same behind each.
behind_router() {
    local name=$1 address=$2
    ip link add wan netns "umbel-router-$name" type veth peer name "to-$name" netns umbel-public
    inside public ip link set "to-$name" master segment up
    inside "router-$name" ip address add "$address/24" dev wan
    inside "router-$name" ip link set wan up
    ip link add lan netns "umbel-router-$name" type veth peer name eth0 netns "umbel-host-$name"
    inside "router-$name" ip address add 192.168.1.1/24 dev lan
    inside "router-$name" ip link set lan up
    inside "host-$name" ip address add 192.168.1.2/24 dev eth0
    inside "host-$name" ip link set eth0 up
    inside "host-$name" ip route add default via 192.168.1.1
    inside "router-$name" sysctl -qw net.ipv4.ip_forward=1
    # What nobody inside has asked for is dropped without a word.
    inside "router-$name" nft -f - <<RULES
table ip translation {
    chain out { type nat hook postrouting priority 100; oifname wan $masquerade; }
    chain through {
        type filter hook forward priority 0; policy drop;
        iifname lan accept
        ct state established,related accept
    }
    chain to_itself { type filter hook input priority 0; policy drop; iifname lo accept; }
}
RULES
}
behind_router a 203.0.113.21
behind_router b 203.0.113.22
behind_router c 203.0.113.23

# Starts a server, and waits until it is ready.
serve() {
    local host=$1 name=$2
    shift 2
    # Not by the function: a shell between would be killed in the server's stead.
    ip netns exec "umbel-$host" env HOME="$scratch" "$umbel" serve "$model" --device cpu --no-mdns --log info,umbel_net=debug \
        --identity "$scratch/$name.pem" "$@" >"$scratch/$name.out" 2>"$scratch/$name.log" &
    started+=($!)
    await "$scratch/$name.out" "^ready "
}

await() {
    local file=$1 text=$2 attempt
    for attempt in $(seq 300); do
        grep -q -- "$text" "$file" 2>/dev/null && return 0
        sleep 0.2
    done
    echo "nothing in $file says: $text" >&2
    tail -n 20 "${file%.*}.log" >&2
    return 1
}

of() { sed -n 's|^ready .*/p2p/||p' "$scratch/$1.out"; }

listen=(--listen /ip4/203.0.113.10/tcp/4001)
if [ "$kind" = private ]; then
    "$umbel" swarm new "$scratch/swarm.key" >/dev/null
    listen+=(--swarm "$scratch/swarm.key")
else
    listen+=(--listen /ip4/203.0.113.10/udp/4001/quic-v1)
fi
serve public relay --blocks 0..1 --relay "${listen[@]}"
relay=$(sed -n 's/^ready //p' "$scratch/relay.out")
[ "$kind" != private ] || relay=$("$umbel" swarm invite "$scratch/swarm.key" "$relay")
echo "routers: $kind; relay: $relay"
serve host-a a --blocks 1..3 --join "$relay"
serve host-b b --blocks 3..4 --join "$relay"
for name in a b; do
    await "$scratch/$name.log" "others reach this server by relays"
    echo "server $name has found out that nobody comes in, and has a place at the relay"
done
# They announce themselves again, by the relay now.
sleep 12

ask=(generate --model "$model" --prompt-ids 1,2,3 --max-tokens 24 --ignore-eos --json --log info,umbel_net=debug)
inside host-c env HOME="$scratch" "$umbel" "${ask[@]}" --join "$relay" \
    >"$scratch/answer" 2>"$scratch/client.log" || { cat "$scratch/client.log" >&2; exit 1; }
env HOME="$scratch" "$umbel" "${ask[@]}" --local >"$scratch/local" 2>/dev/null

met() {
    local from=$1 to=$2 name
    name=$(of "$to")
    if grep -q "a direct connection to a peer that was met by a relay.*$name" "$scratch/$from.log"; then
        echo "directly"
    elif grep -q "no direct connection.*peer=$name" "$scratch/$from.log"; then
        echo "by the relay"
    else
        echo "not by a direct connection"
    fi
}
one_of() { [ "$1" = directly ] && echo "$1" || echo "$2"; }
echo "server a to server b: $(one_of "$(met a b)" "$(met b a)")"
echo "client to server a:   $(met client a)"
echo "client to server b:   $(met client b)"
tokens() { sed 's/.*"token_ids":\[\([^]]*\)\].*/\1/' "$1"; }
if [ "$(tokens "$scratch/answer")" = "$(tokens "$scratch/local")" ]; then
    echo "the answer is that of one process"
else
    echo "the answer is ANOTHER than that of one process" >&2
    exit 1
fi
echo "what umbel doctor says there:"
inside host-c env HOME="$scratch" "$umbel" doctor "$model" --join "$relay" >"$scratch/doctor" 2>/dev/null || true
grep -A 1 -E "^[A-Za-z]+ +(reachability|relays)" "$scratch/doctor" | sed 's/^/    /'
