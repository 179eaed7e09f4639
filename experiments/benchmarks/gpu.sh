#!/usr/bin/env bash
# All that needs a GPU, in one call of 8 minutes at most: what the card is and its target config,
# correctness, layers beside dense and PyTorch, a training step, the quickstart, profiles.
#
#   experiments/benchmarks/gpu.sh OUT [PYTHON] [--dry-run] [--only=STAGE,...] [--seconds=S]
#
# OUT/gpu.json holds all of it and is written after each stage; OUT/gpu.md is its table (python -m
# experiments.benchmarks.tables OUT/gpu.json prints it again). Without a GPU everything runs at tiny
# sizes. CARRY is the folder of gpu_carry.sh; of its wheels only what PYTHON lacks is unpacked.
# COMMIT is kept in the JSON, where a copy of the tree has no history that tells it.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${1:?usage: gpu.sh OUT [PYTHON] [OPTION...]}
shift
PY=python3
if (($#)) && [[ $1 != --* ]]; then PY=$1; shift; fi
CARRY=${CARRY:-.cache/carry}

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [[ -d $CARRY ]]; then
  "$PY" experiments/benchmarks/gpu/unpack.py "$CARRY" "$site" || echo "unpacking failed" >&2
fi
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
# The script ends by itself; this is for the case that it hangs. A dry run may take its time.
limit=480
[[ " $* " == *" --dry-run "* ]] && limit=3600
timeout --kill-after=5 "$limit" "$PY" -m experiments.benchmarks.gpu "$OUT" "$@"
