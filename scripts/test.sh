#!/usr/bin/env bash
# The whole suite. Each end-to-end test makes network and mount namespaces of its own, so they run
# side by side and meet neither each other nor what else this machine runs.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
    echo "The suite makes real namespaces, links and rules; run it as root: sudo make test" >&2
    exit 1
fi
if [ ! -e /dev/net/tun ]; then
    echo "/dev/net/tun is missing; load the module: modprobe tun" >&2
    exit 1
fi

# The same order each time; `make chaos` and a seed of one's own try others.
export CHAOS_SEED="${CHAOS_SEED:-321407564}" KILL_SEED="${KILL_SEED:-16891961}"

cargo build --workspace --locked
if command -v cargo-nextest >/dev/null; then
    cargo nextest run --workspace --locked --no-fail-fast "$@"
    # nextest leaves documentation examples to cargo.
    cargo test --workspace --locked --doc
else
    # One thread per test program: the end-to-end tests change the namespaces of their process.
    cargo test --workspace --locked --no-fail-fast -- --test-threads=1 "$@"
fi
