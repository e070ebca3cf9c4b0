#!/bin/sh
# Writes the protobuf and gRPC code of proto/coordinator.proto, and the OpenAPI document, anew.
#
# The stubs are committed, so that an installation needs no compiler; a test compares them with the .proto file.  The
# proto file is mapped into the package's path, so that the generated import reads `from coordinator.transport.pb import …`.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
out="${1:-.}"
"$python" -m grpc_tools.protoc \
    "-Icoordinator/transport/pb=proto" \
    "--python_out=$out" "--pyi_out=$out" "--grpc_python_out=$out" \
    coordinator/transport/pb/coordinator.proto
if [ "$out" = . ]; then
    "$python" -c 'from coordinator.transport.http.openapi import encoded; print(encoded().decode(), end="")' >proto/openapi.json
fi
