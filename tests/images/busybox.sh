#!/usr/bin/env bash
# Makes an OCI layout of Debian's busybox-static: busybox.sh DIR makes DIR/busybox with the image
# "busybox:latest". It has what a small distribution has: applets, a few users and groups, /tmp.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
[ $# = 1 ] || fail "usage: busybox.sh DIR"

need umoci umoci
busybox=$(command -v busybox || true)
[ -n "$busybox" ] || fail "busybox is missing: install the Debian package busybox-static (make deps)"
# A dynamic busybox would find no libraries in the image.
! ldd "$busybox" >/dev/null 2>&1 || fail "$busybox is not static: install busybox-static"

build() {
    local layout=$1/busybox bundle=$1/.work root applet
    umoci init --layout "$layout"
    umoci new --image "$layout:latest"
    umoci_unpack --image "$layout:latest" "$bundle"
    root=$bundle/rootfs
    mkdir -p "$root"/{bin,dev,etc,home/app,proc,root,sys,var}
    install -d -m 1777 "$root/tmp"
    install -m 0755 "$busybox" "$root/bin/busybox"
    for applet in $("$busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    printf '%s\n' root:x:0:0:root:/root:/bin/sh daemon:x:1:1::/:/bin/false \
        app:x:1000:1000::/home/app:/bin/sh nobody:x:65534:65534::/:/bin/false >"$root/etc/passwd"
    printf '%s\n' root:x:0: daemon:x:1: audio:x:29:app staff:x:50:app app:x:1000: \
        nogroup:x:65534: >"$root/etc/group"
    [ "$(id -u)" != 0 ] || chown 1000:1000 "$root/home/app"
    umoci repack --image "$layout:latest" "$bundle"
    umoci config --image "$layout:latest" --config.cmd sh \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    umoci gc --layout "$layout"
}

build_once "$1" "$(key "$here/lib.sh" "$here/busybox.sh" "$busybox")" build
