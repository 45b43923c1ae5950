#!/bin/sh
# In a network namespace of its own: two ends of a wire, the agent on one, known traffic from the other; then a picture.
# As root: unshare --net examples/packet_sizes/run.sh PICTURE.png. All of it is gone when this ends.
set -eu
[ $# = 1 ] || { echo "usage: unshare --net $0 PICTURE.png" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
if [ "$(readlink /proc/self/ns/net)" = "$(readlink /proc/1/ns/net)" ]; then
    echo "run.sh: this is the machine's own network namespace; run it under unshare --net" >&2
    exit 1
fi
# No address, and nobody else's frames: what arrives on l0 is what graph.py sends.
ip link set lo up
ip link add l0 type veth peer name r0
for end in l0 r0; do
    echo 1 >/proc/sys/net/ipv6/conf/$end/disable_ipv6
    ip link set $end up
done
"$python" -m mapek run -c "$here/node.toml" &
agent=$!
trap 'kill $agent 2>/dev/null || true; wait $agent || true' EXIT
"$python" "$here/graph.py" http://127.0.0.1:9464/metrics "$1"
