#!/usr/bin/env bash
# Installs the clients that tests/clients.rs runs through the proxy, by name, and runs them in full: none may be
# missing. What is no Debian package lands beside the build and is found there by `make test`, too.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
    echo "The tests make real namespaces, links and rules; run them as root: sudo make clients" >&2
    exit 1
fi
scripts/packages.sh

export DEBIAN_FRONTEND=noninteractive
# program:package
wanted=(chromium:chromium h2load:nghttp2-client wrk:wrk python3:python3)
missing=()
for pair in "${wanted[@]}"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
if [ "${#missing[@]}" -gt 0 ]; then
    echo "installing ${missing[*]}"
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
if ! node -e 'process.exit(Number(process.versions.node.split(".")[0]) >= 20 ? 0 : 1)'; then
    echo "Node $(node --version) is too old for its clients: version 20 or newer is needed" >&2
    exit 1
fi

clients="${CARGO_TARGET_DIR:-target}/clients"
mkdir -p "$clients/bin" "$clients/node"
clients="$(realpath "$clients")"

# Only when the list of versions has changed.
list=tests/clients/python/requirements.txt
if ! cmp -s "$list" "$clients/python/requirements.txt"; then
    echo "installing clients for Python ..."
    python3 -m venv --clear "$clients/python"
    "$clients/python/bin/pip" install --quiet --disable-pip-version-check -r "$list"
    cp "$list" "$clients/python/requirements.txt"
fi
list=tests/clients/node/package.json
if ! cmp -s "$list" "$clients/node/package.json" || [ ! -d "$clients/node/node_modules" ]; then
    echo "installing clients for Node ..."
    cp "$list" "$clients/node/package.json"
    npm install --prefix "$clients/node" --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error
fi
# Debian has it from version 13 on.
if command -v websocat >/dev/null; then
    ln -sf "$(command -v websocat)" "$clients/bin/websocat"
elif [ ! -x "$clients/bin/websocat" ]; then
    echo "building websocat ..."
    cargo install websocat --version 1.14.1 --locked --quiet --no-default-features --root "$clients"
fi

cargo build --workspace --locked
export CLIENTS_REQUIRED=1
if command -v cargo-nextest >/dev/null; then
    cargo nextest run --locked --no-fail-fast --success-output immediate --test clients "$@"
else
    cargo test --locked --no-fail-fast --test clients -- --test-threads=1 --nocapture "$@"
fi
