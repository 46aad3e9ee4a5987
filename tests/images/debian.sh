#!/usr/bin/env bash
# Makes an OCI layout of a small Debian of this machine's release, with Python: debian.sh DIR makes
# DIR/debian with the image "debian:latest". Packages come from the apt sources of this machine.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
[ $# = 1 ] || fail "usage: debian.sh DIR"

need mmdebstrap mmdebstrap
need umoci umoci

# The machine's own sources that carry Debian itself, one line each.
sources() {
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT) #$(ORIGIN)' \
        'Created-By: Packages' | sed -n 's/ #Debian$//p' | sort -u
}

build() {
    local work=$1/.work layout=$1/debian bundle
    mkdir "$work"
    sources >"$work/sources.list"
    [ -s "$work/sources.list" ] || fail "apt knows no Debian sources yet: run apt-get update"
    mmdebstrap --quiet --variant=apt --include=python3-minimal \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
        "" "$work/root.tar" "$work/sources.list"
    umoci init --layout "$layout"
    umoci new --image "$layout:latest"
    umoci raw add-layer --image "$layout:latest" "$work/root.tar"
    umoci config --image "$layout:latest" --config.cmd bash \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    umoci gc --layout "$layout"
}

build_once "$1" "$(key "$here/lib.sh" "$here/debian.sh" /etc/debian_version)" build
