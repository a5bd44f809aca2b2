#!/usr/bin/env bash
# Builds everything optimised and measures it. Arguments go to the benchmark: --help tells them.
# CH_BINARY names a real hypervisor to measure instead, and BENCH_KERNEL a small guest kernel for it; without one
# the tiny guest of the tests is built, which needs cc.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
    echo "The benchmark makes real namespaces, links, rules and mounts; run it as root: sudo make bench" >&2
    exit 1
fi
if [ ! -e /dev/net/tun ]; then
    echo "/dev/net/tun is missing; load the module: modprobe tun" >&2
    exit 1
fi
scripts/packages.sh
# The original's way and the comparison with nginx need these as well.
missing=()
for pair in iptables:iptables genisoimage:genisoimage sysctl:procps nginx:nginx-light wrk:wrk; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
if [ "${#missing[@]}" -gt 0 ]; then
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # The benchmark starts nginx itself; the package's own service has no business here.
    nginx_was_there="$(PATH="$PATH:/usr/sbin" command -v nginx || true)"
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    if [ -z "$nginx_was_there" ] && [ -d /run/systemd/system ]; then
        systemctl disable --quiet --now nginx
    fi
fi

echo "building (a few minutes the first time) ..."
cargo build --release --workspace --bins --locked --quiet
target="${CARGO_TARGET_DIR:-target}"
if [ -n "${CH_BINARY:-}" ] && [ -z "${BENCH_KERNEL:-}" ]; then
    BENCH_KERNEL="$target/release/bench-guest"
    export BENCH_KERNEL
    cc -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-Ttext=0x200000 -Wl,-e,entry \
        -o "$BENCH_KERNEL" tests/real_vm/counter.S
fi
exec "$target/release/runner-bench" "$@"
