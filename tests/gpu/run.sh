#!/usr/bin/env bash
# Checks the kernels on this machine's GPU, and prints how fast they are beside its limits.
#
#     cargo build --release -p umbel-tests --bins    on any machine like this one
#     tests/gpu/run.sh [FOLDER_OF_THE_BINARIES]      on the machine with the GPU
#
# It builds nothing. Where PyTorch is installed, it measures what memory and matrix units give, and a
# product of PyTorch's as the peer.
set -euo pipefail
cd "$(dirname "$0")/../.."
binaries=${1:-target/release}
families=(llama llama-tied-mha llama3-rope mistral qwen2 qwen3)

echo "== exactness"
"$binaries/umbel-gpu-check" "${families[@]/#/tests/fixtures/checkpoints/}"

echo "== limits"
limits=$(python3 tests/gpu/limits.py) || limits=
echo "${limits:-PyTorch is not here: no percentages}"
read -r bandwidth matrix _ <<<"$limits" || true

echo "== speed"
"$binaries/umbel-gpu-bench" ${bandwidth:+--bandwidth "$bandwidth"} ${matrix:+--matrix "$matrix"}
