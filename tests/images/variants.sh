#!/usr/bin/env bash
# Makes the same busybox image in every form that `hrun image load` takes, and one with layers that
# need care: variants.sh BUSYBOX DIR, where BUSYBOX is what busybox.sh made. In DIR:
#
#   oci.tar       OCI archive, image "busybox-oci"
#   docker.tar    docker archive (plain layers), image "busybox-docker"
#   zstd/         OCI layout with zstd layers, image "busybox-zstd"
#   layered/      OCI layout, image "layered": whiteouts, an opaque directory, links, xattrs, owners
#                 and a device node in layers on top of busybox; with an entrypoint, user, working
#                 directory and environment
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
[ $# = 2 ] || fail "usage: variants.sh BUSYBOX DIR"
source=$1/busybox

need skopeo skopeo
need umoci umoci

copy() { # copy [OPTION...] FROM TO: the policy is ours, so that none need be installed
    skopeo copy --quiet --insecure-policy "$@"
}

# tar as root sees the files below a directory, with owners that need no root here.
pack() { tar --format=pax --sort=name --owner=0 --group=0 --numeric-owner "$@"; }

layers() { # layers WORK: makes one.tar and two.tar
    local work=$1 one=$1/one two=$1/two
    mkdir -p "$one"/data/{kept,opaque/deep} "$one/srv" "$two/data/opaque"
    echo kept >"$one/data/kept/file"
    echo removed >"$one/data/removed"
    mkdir "$one/data/removed-dir" && echo gone >"$one/data/removed-dir/gone"
    echo hidden >"$one/data/opaque/deep/hidden"
    echo replaced >"$one/data/becomes-dir"
    echo linked >"$one/data/original"
    ln "$one/data/original" "$one/data/hard"
    ln -s original "$one/data/soft"
    ln -s /etc/passwd "$one/data/absolute"
    echo secret >"$one/srv/secret" && chmod 0640 "$one/srv/secret"
    echo set >"$one/srv/setuid" && chmod 4755 "$one/srv/setuid"
    echo tagged >"$one/tagged"
    pack --create --directory="$one" --file="$work/one.tar" data
    pack --directory="$one" --file="$work/one.tar" --append --owner=1000 --group=50 srv
    pack --create --directory="$one" --file="$work/tagged.tar" \
        --pax-option='SCHILY.xattr.user.hrun:=kept' tagged
    if mknod "$one/device" c 1 3 2>/dev/null; then
        pack --directory="$one" --file="$work/one.tar" --append device
    fi

    touch "$two/data/.wh.removed" "$two/data/.wh.removed-dir" "$two/data/opaque/.wh..wh..opq"
    echo fresh >"$two/data/opaque/fresh"
    mkdir "$two/data/becomes-dir" && echo inside >"$two/data/becomes-dir/inside"
    pack --create --directory="$two" --file="$work/two.tar" data
}

build() {
    local out=$1 work=$1/.work
    mkdir "$work"
    copy "oci:$source:latest" "oci-archive:$out/oci.tar:busybox-oci:latest"
    copy "oci:$source:latest" "docker-archive:$out/docker.tar:busybox-docker:latest"
    # From the plain layers of the archive: what is compressed already would be taken as it is.
    copy --dest-compress-format zstd "docker-archive:$out/docker.tar" "oci:$out/zstd:busybox-zstd:latest"

    layers "$work"
    copy "oci:$source:latest" "oci:$out/layered:latest"
    umoci raw add-layer --image "$out/layered:latest" "$work/one.tar"
    umoci raw add-layer --image "$out/layered:latest" "$work/tagged.tar"
    umoci raw add-layer --image "$out/layered:latest" "$work/two.tar"
    umoci config --image "$out/layered:latest" --clear=config.cmd \
        --config.entrypoint /bin/echo --config.entrypoint entry --config.cmd default \
        --config.user app --config.workingdir /data/made --config.env FROM_IMAGE=yes \
        --config.stopsignal SIGUSR1
    umoci gc --layout "$out/layered"
}

build_once "$2" "$(key "$here/lib.sh" "$here/variants.sh" "$1/.key")" build
