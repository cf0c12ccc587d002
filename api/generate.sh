#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# generate.sh DIR: writes the Go code of frail.proto into DIR. The plugins come
# from go.mod's tool directives; protoc is the system's.
set -eu
cd "$(dirname "$0")"
out=$1
gen=$(go tool -n protoc-gen-go)
grpc=$(go tool -n protoc-gen-go-grpc)
exec protoc --plugin=protoc-gen-go="$gen" --plugin=protoc-gen-go-grpc="$grpc" \
	--go_out="$out" --go_opt=paths=source_relative \
	--go-grpc_out="$out" --go-grpc_opt=paths=source_relative \
	frail.proto
