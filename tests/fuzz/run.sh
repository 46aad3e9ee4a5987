#!/usr/bin/env bash
# Runs fuzz targets, each for some seconds: run.sh [SECONDS] [TARGET...] (60, all of them).
#
# On any stable toolchain, without cargo-fuzz: the flags below are those of `cargo fuzz
# --sanitizer none`. A crash fails the run and leaves its input in artifacts/TARGET.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
[ $# = 0 ] || shift
targets=("$@")
[ $# -gt 0 ] || targets=($(cd fuzz_targets && ls ./*.rs | sed 's,^\./,,;s,\.rs$,,'))

# What one input may take.
memory_mb=512
input_seconds=10
# Longest input: parsers of small things find more in many short inputs.
max_len=65536

command -v g++ >/dev/null || { echo "run.sh: g++ is missing: libFuzzer is C++ (make deps-test)" >&2; exit 1; }

host=$(rustc -vV | sed -n 's/^host: //p')
target_dir=${CARGO_TARGET_DIR:-$PWD/../../target}/fuzz
flags=(--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module)
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$flag")
done
# With --target, build scripts and procedural macros are not instrumented.
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
CARGO_TARGET_DIR=$target_dir RUSTFLAGS="${flags[*]}" \
    cargo build --locked --release --target "$host" "${bins[@]}"
built=$target_dir/$host/release
(cd .. && cargo run --quiet --locked -p tests --bin fuzz-seeds -- fuzz/corpus)

failed=()
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    log=$(mktemp)
    status=0
    # A limit of the system's besides libFuzzer's own, should that be deaf.
    timeout --kill-after=10 $((seconds + 60)) \
        "$built/$target" "corpus/$target" -artifact_prefix="artifacts/$target/" \
        -max_total_time="$seconds" -timeout="$input_seconds" -rss_limit_mb="$memory_mb" \
        -malloc_limit_mb="$memory_mb" -max_len="$max_len" -print_final_stats=1 >"$log" 2>&1 || status=$?
    stat() { sed -n "s/^stat::$1: *//p" "$log"; }
    if [ "$status" = 0 ]; then
        printf 'fuzz %-16s ok: %s runs, %s a second, peak memory %s MiB\n' "$target" \
            "$(stat number_of_executed_units)" "$(stat average_exec_per_sec)" "$(stat peak_rss_mb)"
    else
        failed+=("$target")
        tail -n 40 "$log"
        printf 'fuzz %-16s FAILED (status %s); the input is in tests/fuzz/artifacts/%s\n' \
            "$target" "$status" "$target"
    fi
    rm -f "$log"
done
[ ${#failed[@]} = 0 ] || { echo "fuzz: failed: ${failed[*]}" >&2; exit 1; }
