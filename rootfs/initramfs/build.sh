#!/bin/bash
# Builds the initramfs: <target>/guest/initramfs.cpio, which holds the agent as /init.
#
#   rootfs/initramfs/build.sh
#
# Environment:
#   HRUN_TARGET_DIR    where to build (default: CARGO_TARGET_DIR, or target/ of this repository)
#   CARGO              the cargo to use (default: cargo)
#
# The same source and toolchain give the same bytes, wherever the repository and cargo's files
# lie. An archive that would not change is left alone.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
target=${HRUN_TARGET_DIR:-${CARGO_TARGET_DIR:-$repository/target}}
mkdir -p "$target/guest"
target=$(cd "$target" && pwd)
out=$target/guest/initramfs.cpio
triple=x86_64-unknown-linux-gnu
agent=$target/$triple/agent/hrun-agent

say() { printf 'initramfs: %s\n' "$*"; }
die() {
	printf 'initramfs: error: %s\n' "$1" >&2
	shift
	for hint in "$@"; do printf '  %s\n' "$hint" >&2; done
	exit 1
}

case "${1:-}" in
'') ;;
-h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
*) die "unknown argument $1 (try --help)" ;;
esac

# --- The agent -------------------------------------------------------------------

# Static, as there is nothing else in the initramfs; not position-independent, as relocating it
# would touch pages that templates share; and with no path of this machine in it. The flags go
# with --target, so they do not reach build scripts and procedural macros.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
flags=(
	-Ctarget-feature=+crt-static
	-Crelocation-model=static
	-Clink-arg=-Wl,-z,norelro
	-Clink-arg=-Wl,--build-id=none
	"--remap-path-prefix=$repository=/hrun"
	"--remap-path-prefix=$cargo_home=/cargo"
)
encoded=$(printf '\x1f%s' "${flags[@]}")
(
	cd "$repository"
	CARGO_ENCODED_RUSTFLAGS=${encoded#?} CARGO_TARGET_DIR=$target \
		"${CARGO:-cargo}" build --quiet --locked --package agent --bin hrun-agent \
		--profile agent --target "$triple"
) || die "the agent does not build" "The compiler's message is above."

# --- The archive -----------------------------------------------------------------

# What is in it besides /init: type and mode in octal as in stat(2), major, minor, name.
# Directories are mount points of the agent. Devices are those that are wanted before it has a
# devtmpfs: by the kernel for init, by Rust for standard streams, and for a last word.
entries='
040755 0 0 dev
040755 0 0 run
040755 0 0 cgroup
040755 0 0 new
020600 5 1 dev/console
020666 1 3 dev/null
020600 1 11 dev/kmsg
'

ino=0
# One entry of the newc format (Documentation/driver-api/early-userspace/buffer-format.rst of
# the kernel): the header, the name, and zeroes up to a multiple of four bytes.
# Arguments: mode in octal, size, major, minor, name.
header() {
	local mode=$((8#$1)) size=$2 major=$3 minor=$4 name=$5
	local nlink=1
	[ $((mode & 8#170000)) -eq $((8#040000)) ] && nlink=2
	ino=$((ino + 1))
	printf '070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\0' \
		$ino $mode 0 0 $nlink 0 "$size" 0 0 "$major" "$minor" $((${#name} + 1)) 0 "$name"
	pad $((110 + ${#name} + 1))
}

# The same for a regular file at this offset of the archive: zeroes behind its name let its data
# begin on a page, so that our kernel makes them pages of the file instead of copying them
# (rootfstype=ramfs, see guest-kernel/README.md). cpio takes names that end in zeroes.
# Arguments: mode in octal, size, name, offset.
aligned_header() {
	local mode=$((8#$1)) size=$2 name=$3 offset=$4
	local names=$((4096 - (offset + 110) % 4096))
	[ $names -gt ${#name} ] || names=$((names + 4096))
	[ $names -le 4096 ] || die "no name of at most 4096 bytes ends on a page at offset $offset"
	ino=$((ino + 1))
	printf '070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s' \
		$ino $mode 0 0 1 0 "$size" 0 0 0 0 $names 0 "$name"
	head -c $((names - ${#name})) /dev/zero
}

# Zeroes behind this many bytes.
pad() {
	local missing=$(((4 - $1 % 4) % 4))
	head -c $missing /dev/zero
}

devices_and_directories() {
	local mode major minor name
	while read -r mode major minor name; do
		[ -n "$mode" ] || continue
		header "$mode" 0 "$major" "$minor" "$name"
	done <<<"$entries"
}

archive() {
	local size offset
	devices_and_directories
	offset=$(devices_and_directories | wc -c)
	size=$(stat -c %s "$agent")
	ino=100
	aligned_header 100755 "$size" init "$offset"
	cat "$agent"
	pad "$size"
	header 000000 0 0 0 'TRAILER!!!'
}

temporary=$out.$$
trap 'rm -f "$temporary"' EXIT
archive >"$temporary"
if cmp -s "$temporary" "$out"; then
	say "up to date"
	exit 0
fi
mv "$temporary" "$out"
say "built $out ($(stat -c %s "$out") bytes, agent $(stat -c %s "$agent"))"
