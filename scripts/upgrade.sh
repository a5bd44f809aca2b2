#!/usr/bin/env bash
# Builds the runner of an older commit (the argument; by default the one before) and runs the upgrade tests with it:
# its store and its VMs must serve the present runner.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
    echo "The upgrade tests make real namespaces, links and rules; run them as root: sudo make upgrade" >&2
    exit 1
fi
revision=$(git rev-parse --verify "${1:-HEAD~1}^{commit}")
tree=$(mktemp -d /tmp/rch-previous.XXXX)
cleanup() {
    git worktree remove --force "$tree/source" 2>/dev/null || true
    rm -rf "$tree"
}
trap cleanup EXIT
git worktree add --quiet --detach "$tree/source" "$revision"
echo "building the runner of $(git log -1 --format='%h %s' "$revision") ..."
(cd "$tree/source" && CARGO_TARGET_DIR="$tree/target" cargo build --locked --quiet --bin runner-ch)
cp "$tree/target/debug/runner-ch" "$tree/runner-ch"
rm -rf "$tree/target"
cargo build --workspace --locked --quiet
export PREVIOUS_RUNNER="$tree/runner-ch"
if command -v cargo-nextest >/dev/null; then
    cargo nextest run --locked -p runner-ch --test upgrade --no-capture
else
    cargo test --locked -p runner-ch --test upgrade -- --test-threads=1 --nocapture
fi
