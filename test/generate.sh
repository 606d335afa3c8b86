#!/usr/bin/env bash
# Writes everything that is generated below the folder OUT, as it lies in the repository.
#
#   test/generate.sh OUT      (make generate: OUT is the repository itself)
#
# Needs build/tools (make does that), and neither protoc nor the network.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$1"
out=$(cd "$1" && pwd)
tools=$PWD/build/tools

mkdir -p "$out"/{api/v1alpha1,deploy/crds}
"$tools/controller-gen" object paths=./api/v1alpha1 output:object:dir="$out/api/v1alpha1"
"$tools/controller-gen" crd paths=./api/v1alpha1 output:crd:dir="$out/deploy/crds"
"$tools/protogen" -plugins "$tools" -out "$out" api/agent/v1/agent.proto
