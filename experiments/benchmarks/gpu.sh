#!/usr/bin/env bash
# All that needs a GPU, in one call of under ten minutes: correctness, timings beside PyTorch where
# it is installed, and the card's target config for compiling without it.
#
#   experiments/benchmarks/gpu.sh [OUT] [PYTHON]
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${1:-gpu_results} PY=${2:-python3}
mkdir -p "$OUT"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs its part of the memory
status=0
run() { timeout "$1" "${@:2}" || { echo "FAILED ($?): ${*:2}" >&2; status=1; }; }

XLA_FLAGS="--xla_dump_to=$OUT/dump" run 60 "$PY" -c \
  'import jax; print(jax.devices()); jax.jit(lambda x: x @ x)(jax.numpy.ones((256, 256)))'
# One for every module, all alike.
first=$(find "$OUT/dump" -name '*target_config*' | head -n 1)
cp "$first" "$OUT/target_config.pbtxt" || status=1
rm -rf "$OUT/dump"

run 120 "$PY" -m experiments.benchmarks.correctness --json="$OUT/correctness.json"

# Mixtral, OLMoE and DeepSeekMoE: T, D, F, experts, k.
for case in 16384,4096,14336,8,2 16384,2048,1024,64,8 16384,2048,1408,64,6; do
  run 130 "$PY" -m experiments.benchmarks.moe_layer --dtype=bfloat16 --case="$case" \
    --json="$OUT/moe_layer.json"
done
exit "$status"
