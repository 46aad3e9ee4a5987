#!/bin/sh
# A container goes through its life: what the suite of runtime-tools does in each of its programs.
set -u

bundle=$(mktemp -d)
id=sample-life-$$
tests=0
trap '"$RUNTIME" delete --force "$id"; rm -rf "$bundle"' EXIT

check() { # check DESCRIPTION COMMAND...
    description=$1
    shift
    tests=$((tests + 1))
    if "$@"; then
        echo "ok $tests - $description"
    else
        echo "not ok $tests - $description"
    fi
}

status_is() {
    "$RUNTIME" state "$id" | grep -Eq "\"status\": *\"$1\""
}

becomes() { # becomes STATUS, within a minute
    for _ in $(seq 300); do
        status_is "$1" && return 0
        sleep 0.2
    done
    return 1
}

echo "TAP version 13"
mkdir -p "$bundle/rootfs/bin"
cp "$(command -v busybox)" "$bundle/rootfs/bin/sh"
cat > "$bundle/config.json" <<'END'
{
  "ociVersion": "1.0.2",
  "root": { "path": "rootfs", "readonly": true },
  "process": {
    "cwd": "/",
    "args": ["sh", "-c", "echo it runs $0", "here"],
    "env": ["PATH=/bin"]
  },
  "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] }
}
END
check "create" "$RUNTIME" create --bundle "$bundle" "$id" >"$bundle/output" </dev/null
cat "$bundle/output"
check "state is created" status_is created
check "start" "$RUNTIME" start "$id"
check "state becomes stopped" becomes stopped
check "the program's output comes out" grep -qx "it runs here" "$bundle/output"
check "delete" "$RUNTIME" delete "$id"
check "nothing is left" eval '! "$RUNTIME" state "$id" 2>/dev/null'
echo "1..$tests"
