#!/usr/bin/env bash
# What the three ways of a root file system into the guest cost: rootfs.sh HRUN BUSYBOX DEBIAN ROUNDS
# [COUNT], where BUSYBOX and DEBIAN are OCI layouts with an image "latest", and COUNT is how many
# idle busybox containers are there for their memory to be measured [10]. With 0 rounds that alone is
# measured. Root only.
#
# An idle one's memory is told twice: as what MemAvailable falls by, with the kernel's part and with
# whatever else happens on the machine meanwhile, and as the proportional share (PSS) of hrun and its
# VMM, which is neither.
#
# The ways take turns, in another order each round. Every container starts from the template for any
# image, so that no way has an advantage by a template that only it can use.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../images/lib.sh"
[ $# = 4 ] || [ $# = 5 ] || fail "usage: rootfs.sh HRUN BUSYBOX DEBIAN ROUNDS [COUNT]"
hrun=$(realpath "$1") rounds=$4 count=${5:-10}
[ "$count" -gt 0 ] || fail "COUNT is how many containers there are: 1 or more"

need mkfs.erofs erofs-utils

work=$(mktemp -d "${TMPDIR:-/tmp}/hrun-bench-rootfs.XXXXXX")
export HRUN_STORE=$work/store HRUN_STATE=$work/state HRUN_PULL=never HRUN_START=template
trap 'rm -rf "$work"' EXIT
"$hrun" image load "$2" >/dev/null
[ "$rounds" = 0 ] || "$hrun" image load "$3" >/dev/null
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

pss() { # pss PID...: KiB of these and of their children together
    local pid
    for pid in "$@" $(for pid in "$@"; do cat "/proc/$pid"/task/*/children; done); do
        cat "/proc/$pid/smaps_rollup"
    done | awk '$1 == "Pss:" { sum += $2 } END { print sum + 0 }'
}

idle() ( # idle WAY: KiB for each of $count containers, by MemAvailable and by PSS
    pids=()
    # The first process of a container takes no TERM without a handler.
    trap '{ kill -KILL "${pids[@]}"; wait "${pids[@]}"; } 2>/dev/null || true' EXIT
    before=$(awk '/MemAvailable/ { print $2 }' /proc/meminfo)
    for _ in $(seq "$count"); do
        : >"$work/ready"
        # shellcheck disable=SC2086
        "$hrun" run --rm ${way[$1]} busybox sh -c 'echo ready; exec sleep 100000' >"$work/ready" &
        pids+=($!)
        until grep -qs ready "$work/ready"; do
            kill -0 $! || fail "a container does not start"
            sleep 0.1
        done
    done
    sleep 1
    after=$(awk '/MemAvailable/ { print $2 }' /proc/meminfo)
    shares=$(pss "${pids[@]}")
    echo $(((before - after) / count)) $((shares / count))
)

median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# Once, so that what is made at the first need is there: disks, page cache.
for w in host guest block; do
    run "$w" start >/dev/null
    [ "$rounds" = 0 ] || run "$w" find >/dev/null
done
for round in $(seq "$rounds"); do
    for task in start find read write; do
        for w in $(printf '%s\n' host guest block | shuf); do
            run "$w" "$task" >>"$work/$w.$task"
        done
    done
    echo "round $round of $rounds" >&2
done
row='%-10s %10s %10s %10s %10s %18s %14s\n'
# shellcheck disable=SC2059 # all rows have one format
printf "$row" way "start, ms" "find, ms" "read, ms" "write, ms" "idle of $count, KiB" "its PSS, KiB"
for w in host guest block; do
    cells=()
    for task in start find read write; do
        [ "$rounds" = 0 ] && cells+=("-") || cells+=("$(median <"$work/$w.$task")")
    done
    memory=$(idle "$w")
    # shellcheck disable=SC2059,SC2086
    printf "$row" "$w" "${cells[@]}" $memory
done
