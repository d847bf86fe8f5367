#!/usr/bin/env bash
# fetch.sh UV: what looks at manifests, into .cluster/k8s. `make k8s-tools` calls it.
#   bin/kustomize  that of kubectl where there is one (it is what `kubectl apply -k` uses), else built with Go, pinned
#   venv           checkov and kubernetes-validate, apart from our own environment; requirements.lock beside this pins them
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
uv="$1" target="$here/../../../.cluster/k8s"
kustomize=v5.7.1

mkdir -p "$target/bin"
target="$(cd "$target" && pwd)"
if cmp -s "$here/requirements.lock" "$target/.ready" && "$target/bin/kustomize" version > /dev/null 2>&1; then
    exit 0
fi

if command -v kubectl > /dev/null; then
    rm -f "$target/bin/kustomize"
    cat > "$target/bin/kustomize" <<'SHIM'
#!/bin/sh
# kustomize build FOLDER | kustomize version
if [ "$1" = version ]; then exec kubectl version --client; fi
shift
exec kubectl kustomize "$@"
SHIM
    chmod +x "$target/bin/kustomize"
elif command -v go > /dev/null; then
    GOBIN="$target/bin" go install "sigs.k8s.io/kustomize/kustomize/v5@$kustomize"
else
    echo "k8s-tools: rendering needs kubectl 1.30 or later, or Go to build kustomize $kustomize, on the PATH" >&2
    exit 1
fi

"$uv" venv -q --allow-existing "$target/venv"
"$uv" pip install -q --python "$target/venv/bin/python" --require-hashes -r "$here/requirements.lock"
cp "$here/requirements.lock" "$target/.ready"
