#!/usr/bin/env bash
# Checks the kernels on this machine's GPU, and prints how fast they are beside its limits.
#
#     cargo build --release -p umbel-tests --bins --example gpu_swarm    on any machine like this one
#     tests/gpu/run.sh [FOLDER_OF_THE_BINARIES]                          on the machine with the GPU
#
# It builds nothing, and takes four minutes and 32 GB of memory on the GPU. The folder has the programs
# `umbel-gpu-check`, `umbel-gpu-bench`, `umbel-under-test` and `examples/gpu_swarm`. Where PyTorch is
# installed, it measures what memory and matrix units give, and a product of PyTorch's as the peer; where
# transformers is, the same passes by it.
set -euo pipefail
cd "$(dirname "$0")/../.."
binaries=${1:-target/release}
families=(llama llama-tied-mha llama3-rope mistral qwen2 qwen3 mixtral qwen3-moe qwen3-moe-raw)

echo "== exactness"
"$binaries/umbel-gpu-check" "${families[@]/#/tests/fixtures/checkpoints/}"

echo "== limits"
limits=$(python3 tests/gpu/limits.py) || limits=
echo "${limits:-PyTorch is not here: no percentages}"
read -r bandwidth matrix _ <<<"$limits" || true

echo "== speed"
"$binaries/umbel-gpu-bench" --blocks 32 ${bandwidth:+--bandwidth "$bandwidth"} ${matrix:+--matrix "$matrix"}

echo "== several servers"
folder=/dev/shm
[ -d "$folder" ] || folder=${TMPDIR:-/tmp}
"$binaries/examples/gpu_swarm" --type q8_0 --folder "$folder"

echo "== transformers"
python3 tests/gpu/peer.py || echo "transformers is not here, or failed: no peer"
