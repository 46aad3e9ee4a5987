#!/bin/bash
# Builds the guest kernel: <target>/guest/vmlinux and <target>/guest/System.map.
#
#   guest-kernel/build.sh [--force]
#
# Environment:
#   HRUN_TARGET_DIR       where to build (default: target/ of this repository)
#   HRUN_KERNEL_TARBALL   a Linux 6.12 tarball to use instead of Debian's
#   HRUN_KERNEL_SHA256    its sha256; must be given with it
#   JOBS                  compile jobs (default: number of CPUs)
#
# Does nothing if the inputs (tarball, patches, config, this script, compiler)
# are those of the last build.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${HRUN_TARGET_DIR:-$here/../target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
build=$target/guest-kernel-build
source=$build/linux
log=$build/build.log
out=$target/guest
jobs=${JOBS:-$(nproc)}

say() { printf 'guest-kernel: %s\n' "$*"; }
die() {
	printf 'guest-kernel: error: %s\n' "$1" >&2
	shift
	for hint in "$@"; do printf '  %s\n' "$hint" >&2; done
	exit 1
}

force=
case "${1:-}" in
'') ;;
--force) force=yes ;;
-h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
*) die "unknown argument $1 (try --help)" ;;
esac

# --- The source ---------------------------------------------------------------

# shellcheck source=version
. "$here/version"
debian_tarball=/usr/src/$PACKAGE.tar.xz

if [ -n "${HRUN_KERNEL_TARBALL:-}" ]; then
	tarball=$HRUN_KERNEL_TARBALL
	[ -n "${HRUN_KERNEL_SHA256:-}" ] ||
		die "HRUN_KERNEL_TARBALL is set but HRUN_KERNEL_SHA256 is not" \
			"The tarball is trusted by its sha256 only: name it."
	[ -r "$tarball" ] || die "cannot read $tarball"
else
	tarball=$debian_tarball
	[ -r "$tarball" ] ||
		die "$tarball is missing" \
			"Install it:  apt-get install $PACKAGE" \
			"or name a Linux 6.12 tarball in HRUN_KERNEL_TARBALL and its sha256 in HRUN_KERNEL_SHA256."
fi

# --- Has anything changed? ------------------------------------------------------

# Size and mtime stand for the tarball here: hashing 150 MB takes longer than
# everything else. Its sha256 is checked before it is unpacked.
input_hash() {
	{
		printf '%s\n' "$tarball" "${HRUN_KERNEL_SHA256:-}"
		stat -L -c '%s %Y' "$tarball"
		"${CC:-gcc}" --version | head -n1
		ld --version | head -n1
		cat "$here/config" "$here/build.sh"
		for patch in "$here"/patches/*.patch; do
			printf '%s\n' "${patch##*/}"
			cat "$patch"
		done
	} | sha256sum | cut -d' ' -f1
}

up_to_date() {
	[ -z "$force" ] && [ -s "$out/vmlinux" ] && [ -s "$out/System.map" ] &&
		[ "$(cat "$build/stamp" 2>/dev/null)" = "$hash" ]
}

mkdir -p "$build" "$out"
exec 9>"$build/lock"
if ! flock -n 9; then
	say "waiting for another build to finish"
	flock 9
fi

hash=$(input_hash)
if up_to_date; then
	say "up to date: $out/vmlinux"
	exit 0
fi

missing=()
for tool in gcc ld make flex bison bc perl patch xz tar; do
	command -v "$tool" >/dev/null || missing+=("$tool")
done
echo '#include <gelf.h>' | gcc -E -x c - >/dev/null 2>&1 || missing+=("libelf-dev")
[ ${#missing[@]} -eq 0 ] ||
	die "missing: ${missing[*]}" \
		"Install them:  apt-get install build-essential flex bison bc perl patch xz-utils libelf-dev"

# --- Progress and failure ---------------------------------------------------------

started=$SECONDS
: >"$log"

failed() {
	printf 'guest-kernel: error: %s. The end of %s:\n' "$1" "$log" >&2
	tail -n 25 "$log" | sed 's/^/  /' >&2
	exit 1
}

# Counts the objects of a make run: a counter in place on a terminal, a line
# every 10 seconds elsewhere.
progress() {
	local expected=$1 count=0 last=0
	while IFS= read -r line; do
		printf '%s\n' "$line" >>"$log"
		case $line in '  CC '* | '  AS '*) count=$((count + 1)) ;; *) continue ;; esac
		if [ -t 1 ]; then
			printf '\rguest-kernel: compiled %d of about %d files' "$count" "$expected"
		elif [ $((SECONDS - last)) -ge 10 ]; then
			last=$SECONDS
			say "compiled $count of about $expected files"
		fi
	done
	if [ -t 1 ]; then printf '\n'; fi
	# For the next full build; a partial one knows less.
	if [ "$count" -gt "$expected" ] || [ "$count" -gt 800 ]; then
		printf '%s\n' "$count" >"$build/objects"
	fi
}

# --- Unpack and patch ---------------------------------------------------------------

# What a build of our configuration never reads, beside Makefiles and Kconfigs.
# Half the tarball, and most of the time of unpacking it.
excludes=(
	'*/Documentation/?*/*'
	'*/drivers/gpu/*.[chS]' '*/drivers/media/*.[ch]' '*/drivers/scsi/*.[ch]'
	'*/drivers/net/*/*.[ch]' '*/drivers/infiniband/*.[ch]' '*/drivers/staging/*.[ch]'
	'*/drivers/accel/*.[ch]' '*/drivers/usb/*.[ch]' '*/drivers/iio/*.[ch]'
	'*/drivers/clk/*.[ch]' '*/drivers/pinctrl/*.[ch]' '*/drivers/crypto/*.[ch]'
	'*/drivers/mtd/*.[ch]' '*/drivers/hwmon/*.[ch]' '*/drivers/video/*.[ch]'
	'*/drivers/md/*.[ch]' '*/sound/*.[ch]'
	'*/tools/perf/*' '*/tools/testing/*'
	'*.dts' '*.dtsi'
)
for arch in alpha arc arm arm64 csky hexagon loongarch m68k microblaze mips nios2 \
	openrisc parisc powerpc riscv s390 sh sparc xtensa; do
	excludes+=("*/arch/$arch/*.[chS]")
done

# The tree is unpacked once per tarball. When the patches change, the files they
# touch are put back from a copy and patched anew, and a file that comes out as it
# was keeps its time stamp: only what really changed is compiled again.

pristine=$build/pristine

patched_files() {
	cat "$here"/patches/*.patch | sed -n 's|^+++ b/||p' | sort -u
}

unpack() {
	local sha256 release
	sha256=$(sha256sum "$tarball" | cut -d' ' -f1)
	if [ -n "${HRUN_KERNEL_TARBALL:-}" ]; then
		[ "$sha256" = "$HRUN_KERNEL_SHA256" ] ||
			die "$tarball has sha256 $sha256" "expected                 $HRUN_KERNEL_SHA256"
	elif [ "$sha256" != "$SHA256" ]; then
		say "warning: $tarball is not the tested one ($PACKAGE $VERSION); carrying on, apt vouches for it"
	fi

	say "unpacking $tarball"
	rm -rf "$source" "$source.new" "$pristine"
	mkdir "$source.new" "$pristine"
	tar -C "$source.new" --strip-components=1 --no-same-owner --wildcards \
		"${excludes[@]/#/--exclude=}" -xf "$tarball" >>"$log" 2>&1 || failed "unpacking failed"

	release=$(sed -n 's/^VERSION = //p;s/^PATCHLEVEL = //p' "$source.new/Makefile" | paste -sd.)
	[ "$release" = 6.12 ] || die "$tarball is Linux $release; the patches are for 6.12"
	mv "$source.new" "$source"
}

apply_patches() {
	local file patch
	rm -rf "$build/before"
	mkdir "$build/before"

	# Put back what is patched now. A file without a pristine copy came by a patch.
	while IFS= read -r file; do
		[ ! -e "$source/$file" ] || (cd "$source" && cp -p --parents "$file" "$build/before")
		if [ -e "$pristine/$file" ]; then
			cp -p "$pristine/$file" "$source/$file"
		else
			rm -f "$source/$file"
		fi
	done <"$build/patched"

	patched_files >"$build/patched"
	while IFS= read -r file; do
		[ ! -e "$source/$file" ] || (cd "$source" && cp -p --parents "$file" "$pristine")
	done <"$build/patched"

	for patch in "$here"/patches/*.patch; do
		printf '== %s\n' "${patch##*/}" >>"$log"
		patch -d "$source" -p1 --no-backup-if-mismatch -F2 <"$patch" >>"$log" 2>&1 ||
			failed "${patch##*/} does not apply to $tarball"
	done

	while IFS= read -r file; do
		if cmp -s "$build/before/$file" "$source/$file"; then
			touch -r "$build/before/$file" "$source/$file"
		elif [ -e "$source/$file" ]; then
			touch "$source/$file"
		fi
	done < <(cd "$build/before" && { find . -type f | sed 's|^\./||'; cat "$build/patched"; } | sort -u)
	rm -rf "$build/before"
}

tarball_id=$({
	printf '%s\n' "$tarball" "${HRUN_KERNEL_SHA256:-}" "${excludes[@]}"
	stat -L -c '%s %Y' "$tarball"
} | sha256sum | cut -d' ' -f1)
patches_id=$(cat "$here"/patches/*.patch | sha256sum | cut -d' ' -f1)

if [ "$(cat "$build/tarball-id" 2>/dev/null)" != "$tarball_id" ]; then
	rm -f "$build/tarball-id" "$build/patches-id"
	unpack
	: >"$build/patched"
	printf '%s\n' "$tarball_id" >"$build/tarball-id"
fi
if [ "$(cat "$build/patches-id" 2>/dev/null)" != "$patches_id" ]; then
	# A run that fails half-way must not be taken for a patched tree.
	if [ -e "$build/patching" ]; then
		unpack
		: >"$build/patched"
	fi
	: >"$build/patching"
	rm -f "$build/patches-id"
	apply_patches
	printf '%s\n' "$patches_id" >"$build/patches-id"
	rm -f "$build/patching"
fi

# --- Configure -----------------------------------------------------------------------

# The same input gives the same bytes.
export KBUILD_BUILD_TIMESTAMP='2026-01-01 00:00:00 +0000'
export KBUILD_BUILD_USER=hrun KBUILD_BUILD_HOST=hrun KBUILD_BUILD_VERSION=1
export LC_ALL=C
unset KBUILD_OUTPUT KCONFIG_CONFIG MAKEFLAGS MFLAGS ARCH CROSS_COMPILE LOCALVERSION
make=(make -C "$source" --no-print-directory)

say "configuring"
# Kconfig takes no comments behind a value; our fragment has one on each line.
sed -nE 's/^(CONFIG_[A-Za-z0-9_]+=("[^"]*"|[^[:space:]]+)).*/\1/p
	 s/^(# CONFIG_[A-Za-z0-9_]+ is not set).*/\1/p' "$here/config" >"$build/fragment"
{
	"${make[@]}" tinyconfig &&
		cat "$build/fragment" >>"$source/.config" &&
		"${make[@]}" olddefconfig
} >>"$log" 2>&1 || failed "configuring failed"

lost=()
while IFS= read -r line; do
	case $line in
	'#'*)
		symbol=${line#\# }
		symbol=${symbol% is not set}
		grep -q "^$symbol=" "$source/.config" && lost+=("$symbol: wanted off, is on")
		;;
	*)
		grep -qxF -- "$line" "$source/.config" ||
			lost+=("$line: is $(grep -E "^(# )?${line%%=*}[= ]" "$source/.config" || echo 'unknown, or its dependencies are missing')")
		;;
	esac
done <"$build/fragment"
[ ${#lost[@]} -eq 0 ] || die "these lines of $here/config did not survive:" "${lost[@]}"

# --- Build and install -----------------------------------------------------------------

say "compiling with $jobs jobs (log: $log)"
set +e
"${make[@]}" -j"$jobs" vmlinux 2>&1 | progress "$(cat "$build/objects" 2>/dev/null || echo 960)"
status=${PIPESTATUS[0]}
set -e
[ "$status" -eq 0 ] || failed "compiling failed"

# Each file appears complete or not at all.
strip --strip-all -o "$out/.vmlinux.new" "$source/vmlinux"
cp "$source/System.map" "$out/.System.map.new"
rm -f "$build/stamp"
mv "$out/.vmlinux.new" "$out/vmlinux"
mv "$out/.System.map.new" "$out/System.map"
printf '%s\n' "$hash" >"$build/stamp"

say "built $out/vmlinux: Linux $(cat "$source/include/config/kernel.release"), $(($(stat -c %s "$out/vmlinux") / 1024)) KiB, in $((SECONDS - started)) s"
