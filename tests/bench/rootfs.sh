#!/usr/bin/env bash
# What the three ways of a root file system into the guest cost: rootfs.sh HRUN BUSYBOX DEBIAN ROUNDS,
# where BUSYBOX and DEBIAN are OCI layouts with an image "latest". Root only.
#
# The ways take turns, in another order each round. Every container starts from the template for any
# image, so that no way has an advantage by a template that only it can use.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../images/lib.sh"
[ $# = 4 ] || fail "usage: rootfs.sh HRUN BUSYBOX DEBIAN ROUNDS"
hrun=$(realpath "$1") rounds=$4

need mkfs.erofs erofs-utils

work=$(mktemp -d "${TMPDIR:-/tmp}/hrun-bench-rootfs.XXXXXX")
export HRUN_STORE=$work/store HRUN_STATE=$work/state HRUN_PULL=never HRUN_START=template
trap 'rm -rf "$work"' EXIT
"$hrun" image load "$2" >/dev/null
"$hrun" image load "$3" >/dev/null
"$hrun" template create >/dev/null

declare -A way=([host]="--rootfs fs --rootfs-overlay host" [guest]="--rootfs fs --rootfs-overlay guest"
    [block]="--rootfs block")
# What is done in the container, and in which image.
declare -A image=([start]=busybox [find]=debian [read]=debian [write]=debian)
declare -A script=([start]="true"
    [find]="find /usr/share /var | wc -l"
    [read]="cat /usr/bin/perl /usr/bin/p*[a-o] 2>/dev/null | wc -c"
    [write]="mkdir /w && cd /w && cp -r /etc/init.d /etc/pam.d . && rm -r pam.d && du -s .")

run() { # run WAY TASK: ms
    local start end
    start=${EPOCHREALTIME/./}
    # shellcheck disable=SC2086 # the way is options
    "$hrun" run --rm ${way[$1]} "${image[$2]}" sh -c "${script[$2]}" >"$work/printed"
    end=${EPOCHREALTIME/./}
    echo $(((end - start) / 1000))
}

idle() { # idle WAY N: KiB that MemAvailable falls by for each of N containers
    local before after pids=()
    before=$(awk '/MemAvailable/ { print $2 }' /proc/meminfo)
    for _ in $(seq "$2"); do
        # shellcheck disable=SC2086
        "$hrun" run --rm ${way[$1]} debian sh -c 'cat /usr/bin/perl >/dev/null; echo ready; exec sleep 1000' >"$work/ready" &
        pids+=($!)
        until grep -qs ready "$work/ready"; do sleep 0.1; done
        : >"$work/ready"
    done
    sleep 1
    after=$(awk '/MemAvailable/ { print $2 }' /proc/meminfo)
    # The first process of a container takes no TERM without a handler.
    kill -KILL "${pids[@]}"
    wait "${pids[@]}" 2>/dev/null || true
    echo $(((before - after) / $2))
}

median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# Once, so that what is made at the first need is there: disks, page cache.
for w in host guest block; do
    run "$w" start >/dev/null
    run "$w" find >/dev/null
done
for round in $(seq "$rounds"); do
    for task in start find read write; do
        for w in $(printf '%s\n' host guest block | shuf); do
            run "$w" "$task" >>"$work/$w.$task"
        done
    done
    echo "round $round of $rounds" >&2
done
printf '%-10s %10s %10s %10s %10s %16s\n' way "start, ms" "find, ms" "read, ms" "write, ms" "idle of 10, KiB"
for w in host guest block; do
    cells=()
    for task in start find read write; do cells+=("$(median <"$work/$w.$task")"); done
    printf '%-10s %10s %10s %10s %10s %16s\n' "$w" "${cells[@]}" "$(idle "$w" 10)"
done
