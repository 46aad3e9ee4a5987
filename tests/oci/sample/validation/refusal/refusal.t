#!/bin/sh
# What is no configuration is refused, and leaves no container.
set -u

bundle=$(mktemp -d)
id=sample-refusal-$$
trap 'rm -rf "$bundle"' EXIT

echo "1..2"
echo '{ "ociVersion": "1.0.2", "process": { "cwd": "relative", "args": ["true"] } }' \
    > "$bundle/config.json"
if "$RUNTIME" create --bundle "$bundle" "$id" </dev/null; then
    echo "not ok 1 - create refuses a relative cwd"
else
    echo "ok 1 - create refuses a relative cwd"
fi
if "$RUNTIME" state "$id" >/dev/null 2>&1; then
    echo "not ok 2 - there is no container"
    "$RUNTIME" delete --force "$id"
else
    echo "ok 2 - there is no container"
fi
