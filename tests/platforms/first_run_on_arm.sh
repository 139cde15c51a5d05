#!/usr/bin/env bash
# The first run on 64-bit ARM, by emulation: a stock Debian 12 in a folder of its own, and ONCE=1 make run in it.
#
#   make test-arm                          as root, on a Debian or Ubuntu machine of another kind
#
# It installs nothing on the machine. What it needs it names: the packages debootstrap and qemu-user-static.
# Everything of it is in a temporary folder and in namespaces of its own, which end with it. For as long as it runs, the
# kernel hands ARM programs to the emulator. Packages come through what the machine has configured:
#
#   DEBIAN_MIRROR   where Debian comes from; otherwise the machine's own apt source of Debian 12
#   BIND            more folders that pip's configuration names, such as one with wheels; seen inside, read-only
#   KEEP            a folder for the Debian, to be used again; otherwise a temporary one
set -euo pipefail

RELEASE=bookworm
PACKAGES=ca-certificates,make,gcc,g++,libc6-dev,libgomp1,python3,python3-dev,python3-venv
CONFIGURED=(/etc/pip.conf /etc/xdg/pip "$HOME/.config/pip" "$HOME/.pip" /etc/ssl/certs /usr/share/ca-certificates /usr/local/share/ca-certificates)
PASSED='^(PIP_|SSL_CERT_|REQUESTS_CA_BUNDLE|https?_proxy|no_proxy|HTTPS?_PROXY|NO_PROXY)'
BINFMT=/proc/sys/fs/binfmt_misc
# an ELF file of 64 bits, little-endian, for AArch64: executable or shared
MAGIC='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
MASK='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'

clone=$(cd "$(dirname "$0")/../.." && pwd)

fail() {
    echo "test-arm: $1" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "it mounts and changes its root: run it as root"
for program in debootstrap:debootstrap qemu-aarch64-static:qemu-user-static unshare:util-linux; do
    command -v "${program%:*}" >/dev/null || fail "${program%:*} is missing: apt-get install ${program#*:}"
done
# Where apt has Debian 12 from, security apart; the first that it knows.
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Component: main' |
    awk -v release=$RELEASE '$2 == release { print $1; exit }')}
[ -n "$mirror" ] || fail "apt has no source of Debian $RELEASE: name one with DEBIAN_MIRROR"

made="" registered="" mounted=""
root=${KEEP:-$(mktemp -d)}
[ -n "${KEEP:-}" ] || made=$root
tidy_up() {
    [ -z "$registered" ] || echo -1 >"$BINFMT/aima-aarch64"
    [ -z "$mounted" ] || umount "$BINFMT"
    [ -z "$made" ] || rm -rf --one-file-system "$made"
}
trap tidy_up EXIT

if [ ! -e $BINFMT/register ]; then
    mount -t binfmt_misc binfmt_misc $BINFMT || fail "the kernel has no binfmt_misc"
    mounted=1
fi
if ! grep -qs '^interpreter.*aarch64' $BINFMT/*; then
    # F: the emulator is opened now, so it need not be inside the root
    echo ":aima-aarch64:M::$MAGIC:$MASK:$(command -v qemu-aarch64-static):F" >$BINFMT/register
    registered=1
fi

if [ ! -x "$root/usr/bin/python3" ]; then
    echo "test-arm: a Debian $RELEASE for arm64 in $root (some minutes)"
    debootstrap --arch=arm64 --variant=minbase --include=$PACKAGES $RELEASE "$root" "$mirror" >"$root.log" 2>&1 ||
        { tail -20 "$root.log" "$root/debootstrap/debootstrap.log" >&2; fail "debootstrap failed; its log is $root.log"; }
    rm -f "$root.log"
fi

# A clone as it stands here, commits and changes, without what is ignored.
rm -rf "$root/aima" && mkdir "$root/aima"
git -C "$clone" ls-files -z --cached --others --exclude-standard | tar -C "$clone" --null --ignore-failed-read -T - -c | tar -C "$root/aima" -x
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
env | grep -E "$PASSED" | sed "s/'/'\\\\''/g; s/=\(.*\)/='\1'/; s/^/export /" >"$root/aima.env" || true

inside() { # in namespaces that end with it, and with them all mounts and processes
    for path in $BIND; do
        [ -e "$path" ] || continue
        if [ -d "$path" ]; then mkdir -p "$root$path"; else mkdir -p "$(dirname "$root$path")" && touch "$root$path"; fi
        mount --bind "$path" "$root$path"
        mount -o remount,bind,ro "$root$path"
    done
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/tmp"
    chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 /bin/sh -ec '
        . /aima.env
        export AIMA_DATA=/tmp/aima AIMA_NODE=arm ONCE=1
        cd /aima
        echo "test-arm: $(uname -m), $(python3 --version), Debian $(cat /etc/debian_version)"
        make setup
        make run'
}
export -f inside
export root BIND="${CONFIGURED[*]} ${BIND:-}"
unshare --mount --propagation private --pid --fork --kill-child bash -ec inside
echo "test-arm: passed"
