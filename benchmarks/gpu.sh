#!/usr/bin/env bash
# Checks quantkit on the GPU of this machine, in at most ten minutes and without a network:
#
#   benchmarks/gpu.sh [WHEELS] [OUT]
#
# WHEELS: a folder of wheels of what this machine's Python lacks (pydantic, typer, onnxscript,
#   tensorrt-rtx-cu13 and its libraries …); nothing is installed outside a folder of its own.
# OUT: where gpu.json goes (default: benchmarks/results). docs/gpu.md is written from it.
# PYTHON: the Python with a CUDA build of PyTorch (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=${1:-} out=${2:-benchmarks/results} python=${PYTHON:-python3}
mkdir -p "$out"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "$wheels" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
fi
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

"$python" -m benchmarks.gpu --out "$out/gpu.json"
"$python" -m benchmarks.gpu_page "$out/gpu.json"
