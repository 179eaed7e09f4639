#!/usr/bin/env bash
# Puts the wheels that the GPU's machine lacks into a folder that git ignores; gpu.sh unpacks it there.
#
#   experiments/benchmarks/gpu_carry.sh [FOLDER] [PYTHON]
#
# They are for Python 3.12 on x86-64, whatever runs here. A wheel of something that the machine has
# after all is left packed by gpu.sh, so that the machine's own versions win.
set -euo pipefail
cd "$(dirname "$0")/../.."
FOLDER=${1:-.cache/carry} PY=${2:-python3}
MOST=$((64 * 1024 * 1024)) # of all that travels, the working tree included

WHEELS=(
  # Of ours.
  grain==0.2.18 array_record==0.8.6 tensorflow-datasets==4.9.10 tensorboardX==2.6.5
  ml_collections==1.1.0 jaxtyping==0.3.11 optax==0.2.8 orbax-checkpoint==0.12.8
  # Of theirs.
  wadler_lindig==0.1.8 tensorflow-metadata==1.21.0 googleapis-common-protos==1.76.0
  simple-parsing==0.1.9 docstring_parser==0.18.0 immutabledict==4.3.1 dm-tree==0.1.10
  portpicker==1.6.0 termcolor==3.3.0 toml==0.10.2 importlib_resources==7.1.0
)
SOURCES=(promise==2.3) # published without a wheel

rm -rf "$FOLDER"
mkdir -p "$FOLDER"
platforms=()
for glibc in 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
"$PY" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --python-version 3.12 --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 \
  --dest "$FOLDER" "${WHEELS[@]}"
"$PY" -m pip wheel --quiet --disable-pip-version-check --no-deps \
  --wheel-dir "$FOLDER" "${SOURCES[@]}"

(cd "$FOLDER" && du -k -- *.whl | sort -n)
wheels=$(cat "$FOLDER"/*.whl | wc -c)
tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 cat 2>/dev/null | wc -c)
echo "wheels $((wheels / 1024)) KiB, working tree $((tree / 1024)) KiB, of $((MOST / 1024)) KiB"
if ((wheels + tree > MOST)); then
  echo "too much to carry" >&2
  exit 1
fi
