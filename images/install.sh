#!/bin/sh
# install.sh UV PYTHON EXTRAS [OPTIONS...]: this package, and what the extras (a,b; or none: "") need, into PYTHON's
# environment. Versions and hashes are those of the lock; what the extras do not need is not installed.
# The wheel is built in a folder of its own: the build writes beside the sources, which may be shared.
set -eu
uv=$1 python=$2 extras=$3
shift 3
sources=$(cd "$(dirname "$0")/.." && pwd)
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
mkdir "$wheels/src"
cd "$sources"
cp -R pyproject.toml README.md LICENSE NOTICE pageturn pipeline model_export "$wheels/src"
"$uv" build -q --wheel --build-constraint requirements.lock -o "$wheels" "$wheels/src"
wheel=$(ls "$wheels"/pageturn-*.whl)
"$uv" pip install -q --python "$python" --constraint requirements.lock "$@" "pageturn${extras:+[$extras]} @ file://$wheel"
