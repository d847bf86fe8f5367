#!/bin/sh
# Writes agentpb/ from pipeline/agent/agent.proto. go.mod pins the plug-ins, and go.sum their contents; protoc is the one of
# grpcio-tools: PYTHON names an interpreter that has it.
set -eu
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
out=${1:-agentpb}
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
go build -o "$plugins/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
mkdir -p "$out"
package=Magent.proto=pageturn/clients/go/agentpb
PATH="$plugins:$PATH" "${PYTHON:-$root/.venv/bin/python}" -m grpc_tools.protoc -I "$root/pipeline/agent" \
    --go_out="$out" --go_opt=paths=source_relative --go_opt="$package" \
    --go-grpc_out="$out" --go-grpc_opt=paths=source_relative --go-grpc_opt="$package" agent.proto
