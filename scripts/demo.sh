#!/usr/bin/env bash
# The main job on embedded defaults: a simulated API and simulated VMMs around the real runner, in
# namespaces of their own, so that nothing of it meets this host's bridges, rules or ports.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
    echo "The demo makes real network namespaces, links and rules; run it as root: sudo make demo" >&2
    exit 1
fi
if [ ! -e /dev/net/tun ]; then
    echo "/dev/net/tun is missing; load the module: modprobe tun" >&2
    exit 1
fi

if [ "${1:-}" != inside ]; then
    scripts/packages.sh
    if ! command -v cargo >/dev/null; then
        echo "cargo is missing; install Rust 1.91 or newer (rustup.rs, or your distribution's package)" >&2
        exit 1
    fi
    echo "building (a few minutes the first time) ..."
    cargo build --workspace --bins --locked --quiet
    exec unshare --net --mount --propagation private "$0" inside
fi

bin=$PWD/target/debug
work=$(mktemp -d /tmp/rch-demo.XXXX)
token=demo-token-$$-$RANDOM$RANDOM
sim_pid='' runner_pid=''

cleanup() {
    status=$?
    trap - EXIT INT TERM
    [ -n "$runner_pid" ] && kill "$runner_pid" 2>/dev/null && wait "$runner_pid" 2>/dev/null
    # VMMs outlive their runner on purpose; after a failure they are told by their pids.
    if [ -s "$work/vmms" ]; then
        while read -r pid; do kill -9 "$pid" 2>/dev/null; done <"$work/vmms"
    fi
    [ -n "$sim_pid" ] && kill "$sim_pid" 2>/dev/null && wait "$sim_pid" 2>/dev/null
    if [ "$status" -ne 0 ]; then
        echo
        echo "The demo failed. The last lines of the runner's log:"
        tail -n 15 "$work/runner.log" 2>/dev/null
    fi
    rm -rf "$work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

ip link set lo up
mount -t sysfs sysfs /sys
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
mkdir -p "$work"/{sock,boxes,snapshots/ubuntu-base.1,state}
# Any ELF file is a kernel to the simulated VMM, and an empty raw image is a base.
cp "$bin/ch-sim" "$work/vmlinux"
truncate -s 64M "$work/snapshots/ubuntu-base.1/disk.raw"

now() { date +%s%N; }
since() { echo "$((($(now) - $1) / 1000000))"; }
step() { printf '\n\033[1m%s\033[0m\n' "$1"; }
line() { printf '  %7s ms  %s\n' "$1" "$2"; }

export DAYTONA_SIM_URL=http://127.0.0.1:3000
"$bin/daytona-sim" serve --listen 127.0.0.1:3000 --token "$token" >"$work/api.log" 2>&1 &
sim_pid=$!

step "1. The runner starts, configured by the environment alone"
began=$(now)
env -i PATH="$PATH" SERVER_URL=http://127.0.0.1:3000/api API_TOKEN="$token" RUNNER_DOMAIN=127.0.0.1 \
    RUNNER_HTTP_ADDRESS=127.0.0.1 API_PORT=3006 CH_BINARY="$bin/ch-sim" \
    CH_SOCKETS_PATH="$work/sock" CH_SANDBOXES_PATH="$work/boxes" CH_SNAPSHOTS_PATH="$work/snapshots" \
    CH_KERNEL_PATH="$work/vmlinux" CH_INITRAMFS_PATH="" \
    CH_BASE_IMAGE_PATH="$work/snapshots/ubuntu-base.1/disk.raw" RUNNER_STATE_PATH="$work/state" \
    RUNNER_MIN_FREE_MEMORY_MB=0 RUNNER_MIN_FREE_DISK_MB=0 \
    "$bin/runner-ch" >"$work/runner.log" 2>&1 &
runner_pid=$!
for _ in $(seq 1 500); do
    root=$(curl -s http://127.0.0.1:3006/ || true)
    case "$root" in *'"ok"'*) break ;; esac
    kill -0 "$runner_pid" 2>/dev/null || exit 1
    sleep 0.02
done
line "$(since "$began")" "GET :3006/ answers $root"

box=demo-box-1
# job NAME ARGUMENTS...: submits a job to the API and waits for what the runner reports.
job() {
    local name=$1 began
    shift
    began=$(now)
    "$bin/daytona-sim" "$@" --wait >"$work/job" 2>&1 || { cat "$work/job"; exit 1; }
    line "$(since "$began")" "$name"
}
api() { curl -sS --fail-with-body -H "Authorization: Bearer $token" "$@"; }
guest() {
    api -H 'Content-Type: application/json' -d "{\"command\":\"$1\"}" \
        "http://127.0.0.1:3006/sandboxes/$box/toolbox/process/execute"
}

step "2. A CREATE_SANDBOX job becomes a microVM in its own network namespace"
job "CREATE_SANDBOX: polled, built, booted, toolbox ready, reported" create "$box" --cpu 2 --memory 1 --disk 5
pgrep -f -- "--api-socket $work/sock/" >"$work/vmms" || true
api "http://127.0.0.1:3006/sandboxes/$box" | tr ',' '\n' | grep -E 'stage|micros' | tr -d '{}[]"' | paste - - |
    sed -E 's/timings://; s/stage:([^\t]*)\tmicros:([0-9]+).*/\2 \1/' |
    while read -r micros stage; do printf '  %10s us  - %s\n' "$micros" "$stage"; done
echo "  namespaces: $(ls /run/netns | tr '\n' ' ')"
ip -br link show type veth | sed 's/^/  link:       /'

step "3. Into the guest, through the runner's proxy"
began=$(now)
version=$(api "http://127.0.0.1:3006/sandboxes/$box/toolbox/version")
line "$(since "$began")" "GET toolbox/version            -> $version"
began=$(now)
answer=$(guest "echo hello from \$(hostname) > /tmp/note")
answer=$(guest "uname -a")
line "$(since "$began")" "POST toolbox/process/execute   -> $answer"
guest "write-block 1 still-here" >/dev/null
echo "              the guest wrote a block to its disk"

step "4. Fork it while it runs: a copy with its memory and its disk"
copy=demo-copy-1
began=$(now)
forked=$(api -H 'Content-Type: application/json' -d "{\"newSandboxId\":\"$copy\"}" \
    "http://127.0.0.1:3006/sandboxes/$box/fork")
line "$(since "$began")" "POST /sandboxes/$box/fork: the copy answers and has an identity of its own"
pgrep -f -- "--api-socket $work/sock/" >"$work/vmms" || true
field() { echo "$forked" | grep -oE "\"$1\":\"?[a-zA-Z0-9_ ]+" | head -1 | sed -E 's/.*:"?//'; }
echo "              recipe $(field recipe), VMM replaced: $(field replaced), identity $(field identity)"
parent=$box
box=$copy
echo "              the copy reads its parent's note:  $(guest "cat /tmp/note")"
echo "              the copy reads its parent's block: $(guest "read-block 1")"
guest "write-block 1 the-copys-own" >/dev/null
api -X DELETE "http://127.0.0.1:3006/sandboxes/$copy" >/dev/null
box=$parent
echo "              the parent still reads:            $(guest "read-block 1")"

step "5. Stop: no process, no namespace; memory and disk are kept on disk"
job "STOP_SANDBOX" stop "$box"
echo "              state: $(api "http://127.0.0.1:3006/sandboxes/$box" | grep -oE '"state":"[a-z]+"')"

step "6. Start: the guest goes on where it was"
job "START_SANDBOX" start "$box"
pgrep -f -- "--api-socket $work/sock/" >"$work/vmms" || true
echo "              the guest reads back: $(guest "read-block 1")"
echo "              its memory as well:   $(guest "cat /tmp/note")"

step "7. Destroy"
job "DESTROY_SANDBOX" destroy "$box"
: >"$work/vmms"

step "8. What was left behind"
left=0
count() { # what, number
    printf '  %-22s %s\n' "$1" "$2"
    left=$((left + $2))
}
count "VMM processes" "$(pgrep -c -f -- "--api-socket $work/sock/" || true)"
count "network namespaces" "$(find /run/netns -mindepth 1 | wc -l)"
count "veth links" "$(ip -o link show type veth | wc -l)"
count "sockets and locks" "$(find "$work/sock" -mindepth 1 | wc -l)"
count "sandbox directories" "$(find "$work/boxes" -mindepth 1 -maxdepth 1 ! -name '.*' | wc -l)"
count "captures and layers" "$(find "$work/boxes/.captures" "$work/boxes/.layers" -mindepth 1 2>/dev/null | wc -l)"
[ "$left" -eq 0 ] || exit 1

step "9. SIGTERM drains the runner"
began=$(now)
kill -TERM "$runner_pid"
wait "$runner_pid"
runner_pid=''
line "$(since "$began")" "exit code 0"
printf '\nDone. Nothing is left of this demo.\n'
