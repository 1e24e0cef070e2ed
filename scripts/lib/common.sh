# shellcheck shell=sh disable=SC2034 # the colours are for those who source this
# What the scripts share. Sourced from the repository's root.

PATH="$PATH:/usr/sbin:/sbin"

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$(printf '\033[1m') green=$(printf '\033[32m') red=$(printf '\033[31m') plain=$(printf '\033[0m')
else
    bold="" green="" red="" plain=""
fi

# Tells of a step that went well, or of one that did not.
good() { printf '  %s✓%s %s\n' "$green" "$plain" "$*"; }
bad() { printf '  %s✗%s %s\n' "$red" "$plain" "$*" >&2; }

# target_folder ROOT: where cargo puts what it builds in the repository at ROOT, whatever says so: CARGO_TARGET_DIR, build.target-dir
# of a configuration file, or neither. Without cargo it is what it would be by default.
target_folder() {
    found=$(cd "$1" && cargo metadata --no-deps --format-version 1 2>/dev/null | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p') || true
    printf '%s\n' "${found:-${CARGO_TARGET_DIR:-$1/target}}"
}

# become_root SCRIPT [ARG…]: returns if we are root; else starts the script again as the root of a user namespace with
# its own network and its own /run, where namespaces and taps may be made without privilege; else says what it takes.
# Whatever needs the outside network (packages, crates) must be done before.
become_root() {
    [ "$(id -u)" -ne 0 ] || return 0
    if ! { : <>/dev/net/tun; } 2>/dev/null; then
        bad "not root, and /dev/net/tun cannot be opened: run as root (or as root: chmod 666 /dev/net/tun)"
        exit 1
    fi
    if ! unshare --user --map-root-user --net --mount sh -c 'mount -t tmpfs none /run' 2>/dev/null; then
        bad "not root, and user namespaces are not allowed here: run as root"
        exit 1
    fi
    good "not root: going on in a user namespace of our own"
    # shellcheck disable=SC2016 # expanded by the inner shell
    exec unshare --user --map-root-user --net --mount sh -c \
        'mount -t tmpfs none /run && mkdir /run/netns && ip link set lo up && exec "$@"' sh \
        env CARGO_NET_OFFLINE=true "$@"
}
