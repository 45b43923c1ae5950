#!/bin/sh
# Objects that nobody here wrote, for tests/unit/bpf/test_foreign.py: tools/foreign.sh DIRECTORY, then MAPEK_FOREIGN=DIRECTORY.
# Debian's packages are only unpacked there: nothing is installed. A package that this release lacks is said and left out.
set -eu
[ $# = 1 ] || { echo "usage: tools/foreign.sh DIRECTORY" >&2; exit 2; }
mkdir -p "$1"
cd "$1"
# clang by several authors and versions, objects on disk and inside of programs and libraries, both byte orders (Go), none of BTF (ir)
for name in libbpf-tools libxdp1 xdp-tools xdp-tests libknot13 ir-keytable golang-github-cilium-ebpf-dev; do
    [ -d "$name" ] && continue
    # Fetched as root by root: apt's own user may not write here.
    if apt-get download -qq -o APT::Sandbox::User=root "$name"; then
        dpkg-deb -x "$name"_*.deb "$name.part"
        mv "$name.part" "$name"
        rm -f "$name"_*.deb
    else
        echo "no objects of $name: apt-get cannot download it" >&2
    fi
done
