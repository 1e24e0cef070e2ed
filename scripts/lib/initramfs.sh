#!/bin/sh
# Makes what a guest of tests and measurements boots from: busybox, the drivers that scripts/setup unpacked into guest of cargo's
# target folder, guest-init.sh as the first program, and the programs that are named, with the libraries they need.
#
# usage: scripts/lib/initramfs.sh FILE [PROGRAM]…
set -eu
here=$(dirname "$0")
# shellcheck source=scripts/lib/common.sh
. "$here/common.sh"
into=$1
shift

tree=$(mktemp -d /tmp/vswitch-guest-XXXXXX)
trap 'rm -rf "$tree"' EXIT
trap 'exit 130' INT TERM
mkdir "$tree/bin" "$tree/dev"
cp "$(command -v busybox)" "$tree/bin/busybox"
cp "$(target_folder "$here/../..")"/guest/*.ko "$tree"
cp "$here/guest-init.sh" "$tree/init"
chmod 755 "$tree/init"
for program in "$@"; do
    program=$(command -v "$program")
    for file in "$program" $(ldd "$program" | grep -o '/[^ ]*'); do
        mkdir -p "$tree$(dirname "$file")"
        cp "$file" "$tree$file"
    done
done
(cd "$tree" && find . | busybox cpio -o -H newc 2>/dev/null) >"$into"
