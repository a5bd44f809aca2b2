#!/usr/bin/env bash
# Installs the Debian packages that tests and demo use and that are not there yet, by name.
set -euo pipefail

# program:package
wanted=(ip:iproute2 nft:nftables mkfs.xfs:xfsprogs qemu-img:qemu-utils curl:curl blkid:util-linux cc:gcc pgrep:procps openssl:openssl
    ssh:openssh-client sshd:openssh-server rsync:rsync python3:python3 nsenter:util-linux)
missing=()
for pair in "${wanted[@]}"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "These packages are missing: ${missing[*]}. Install them, or run this as root: sudo make packages" >&2
    exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
