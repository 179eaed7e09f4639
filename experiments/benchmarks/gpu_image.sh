#!/usr/bin/env bash
# An environment like the image of the machine with a GPU, on the CPU: where gpu.sh is tried out.
#
#   experiments/benchmarks/gpu_image.sh FOLDER [PYTHON]        PYTHON: 3.12 (default: python3.12)
#
# The versions are those that were read there. TORCH=... names another build: the image has 2.11 for
# CUDA, and a small build for the CPU of any version does as well here. What of our dependencies is
# not in the image is not installed here either: gpu_carry.sh carries it.
set -euo pipefail
FOLDER=${1:?usage: gpu_image.sh FOLDER [PYTHON]} PY=${2:-python3.12}
TORCH=${TORCH:-torch==2.11.0}

"$PY" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || {
  echo "the image has Python 3.12; $PY is $("$PY" --version 2>&1)" >&2
  exit 2
}
"$PY" -m venv "$FOLDER"
"$FOLDER/bin/python" -m pip install --quiet --disable-pip-version-check \
  "$TORCH" jax==0.11.2 jaxlib==0.11.2 numpy==2.5.2 transformers==5.17.0 tokenizers==0.23.2 \
  safetensors==0.8.0 huggingface-hub==1.33.0 jaxtyping==0.3.11 flax chex optax orbax-checkpoint \
  scipy rich etils absl-py humanize psutil protobuf pyarrow wrapt cloudpickle pyyaml six requests
"$FOLDER/bin/python" -m pip list --disable-pip-version-check
