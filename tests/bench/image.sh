#!/usr/bin/env bash
# How fast images get into the store, compared with umoci and skopeo: image.sh HRUN LAYOUT ROUNDS,
# where LAYOUT is an OCI layout with an image "latest". Root only, as unpacking is.
#
# All take turns, in the other order every second round, each into a directory that is empty and
# with nothing else to be written out when its clock starts. hrun answers when the image is on the
# disk; umoci leaves that to the kernel, so it is measured with and without a sync.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../images/lib.sh"
[ $# = 3 ] || fail "usage: image.sh HRUN LAYOUT ROUNDS"
hrun=$(realpath "$1") layout=$(realpath "$2") rounds=$3

need docker-registry docker-registry
need skopeo skopeo
need umoci umoci

work=$(mktemp -d "${TMPDIR:-/tmp}/hrun-bench-image.XXXXXX")
registry=
cleanup() {
    [ -z "$registry" ] || kill "$registry" || true
    wait
    rm -rf "$work"
}
trap cleanup EXIT

cat >"$work/config.yml" <<END
version: 0.1
log: {level: info}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: 127.0.0.1:0}
END
docker-registry serve "$work/config.yml" >"$work/log" 2>&1 &
registry=$!
port=
for _ in {1..600}; do
    port=$(sed -n 's/.*listening on 127\.0\.0\.1:\([0-9]*\).*/\1/p' "$work/log" | head -n 1)
    [ -z "$port" ] || break
    kill -0 "$registry" || fail "docker-registry does not start: $(cat "$work/log")"
    sleep 0.1
done
name=localhost:$port/image:latest
skopeo copy --quiet --insecure-policy --dest-tls-verify=false "oci:$layout:latest" "docker://$name"

# Each leaves what it makes in $out.
load_hrun() { HRUN_STORE=$out "$hrun" image load --quiet "$layout" >/dev/null 2>&1; }
load_umoci() { umoci unpack --image "$layout:latest" "$out/bundle" 2>/dev/null; }
load_umoci_sync() { load_umoci && sync --file-system "$out"; }
pull_hrun() { HRUN_STORE=$out "$hrun" pull --quiet "$name" >/dev/null 2>&1; }
pull_skopeo_umoci() {
    skopeo copy --quiet --insecure-policy --src-tls-verify=false "docker://$name" "oci:$out/pulled:latest"
    umoci unpack --image "$out/pulled:latest" "$out/bundle" 2>/dev/null
}
pull_skopeo_umoci_sync() { pull_skopeo_umoci && sync --file-system "$out"; }

measure() { # measure ARM: one sample, in ms
    local out=$work/out start end
    rm -rf "$out" && mkdir -p "$out"
    sync --file-system "$out"
    start=${EPOCHREALTIME/./}
    "$1"
    end=${EPOCHREALTIME/./}
    echo $(((end - start) / 1000)) >>"$work/$1.ms"
}

arms=(load_hrun load_umoci load_umoci_sync pull_hrun pull_skopeo_umoci pull_skopeo_umoci_sync)
for ((round = 0; round < rounds; round++)); do
    for ((n = 0; n < ${#arms[@]}; n++)); do
        turn=$((round % 2 ? ${#arms[@]} - 1 - n : n))
        measure "${arms[turn]}"
    done
done

median() { sort -n "$work/$1.ms" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
line() { # line LABEL ARM BASE
    local found base
    found=$(median "$2") base=$(median "$3")
    awk -v label="$1" -v found="$found" -v base="$base" -v all="$(sort -n "$work/$2.ms" | xargs)" \
        'BEGIN { printf "%-34s %7d ms  %5.2f  (%s)\n", label, found, found / base, all }'
}
printf '%-34s %10s  %5s\n' "median of $rounds" time ratio
line "hrun image load" load_hrun load_hrun
line "umoci unpack" load_umoci load_hrun
line "umoci unpack, sync" load_umoci_sync load_hrun
line "hrun pull" pull_hrun pull_hrun
line "skopeo copy, umoci unpack" pull_skopeo_umoci pull_hrun
line "skopeo copy, umoci unpack, sync" pull_skopeo_umoci_sync pull_hrun
