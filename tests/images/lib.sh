# Shared by the scripts that make test images: run a builder once, under a lock, and keep its output.

fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || fail "$1 is missing: install the Debian package $2 (make deps)"
}

# build_once OUT KEY FUNCTION: calls FUNCTION DIR, and moves DIR to OUT when it is complete.
# Nothing happens while OUT/.key still says KEY; whoever comes second waits for the first.
build_once() {
    local out=$1 key=$2 builder=$3 work
    mkdir -p "$(dirname "$out")"
    exec 9>"$out.lock"
    flock 9
    if [ "$(cat "$out/.key" 2>/dev/null)" != "$key" ]; then
        work=$(mktemp -d "$out.XXXXXX")
        # shellcheck disable=SC2064 # the directory of now is meant
        trap "rm -rf '$work'" EXIT
        "$builder" "$work"
        rm -rf "$work/.work"
        printf '%s\n' "$key" >"$work/.key"
        rm -rf "$out"
        mv "$work" "$out"
        chmod 0755 "$out"
        trap - EXIT
    fi
    exec 9>&-
}

# key FILE...: what the output depends on: the builder's own text and the packages it copies from.
key() { cat "$@" | sha256sum | cut -d' ' -f1; }

# Without root, files belong to root in the image only.
umoci_unpack() {
    if [ "$(id -u)" = 0 ]; then umoci unpack "$@"; else umoci unpack --rootless "$@"; fi
}
