#!/bin/sh
# Build the CUDA kernels with nvcc from pip alone, on first use and ahead of time, and load both builds.
# No GPU is needed and no file remains; set VENV to keep an environment and reuse it.
set -eu
cd "$(dirname "$0")/.."
if [ -e /usr/local/cuda/bin/nvcc ]; then # it would go before pip's packages: hide it from this script alone
    exec unshare --map-root-user --mount sh -c 'mount -t tmpfs none /usr/local/cuda && exec "$0"' "$PWD/tests/toolkit.sh"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/source"
cp -r pyproject.toml setup.py README.md LICENSE sbnref csrc "$work/source"
torch=$(sed -n 's/^torch==//p' constraints.txt)
venv=${VENV:-$work/venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"

# Hide other toolkits: use only pip's packages and the system's C++ compiler.
export PATH="$venv/bin:/usr/bin:/bin"
unset CUDA_HOME CUDA_PATH PYTHONPATH SBNREF_CUDASIM
export TORCH_CUDA_ARCH_LIST=9.0 TORCH_EXTENSIONS_DIR="$work/extensions"
if command -v nvcc; then echo "expected no nvcc in /usr/bin"; exit 1; fi

# === matches the release exactly, and so excludes a CPU build such as 2.13.0+cpu
pip install --quiet "torch===$torch" 'setuptools>=77'
cd "$work"
pip install --quiet './source[cuda-toolkit]'
COLUMNS=300 sbnref info | grep "from this Python's packages"
sbnref build cuda
loaded='
import torch
from sbnref.impls import build
library = build.load(build.KERNELS)
for stage in ("forward_stats", "forward_apply", "backward_stats", "backward_apply"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("sbnref::" + stage, "CUDA"), stage
print(build.built(build.KERNELS))'
python -c "$loaded"

SBNREF_BUILD_CUDA=1 pip install --quiet --no-build-isolation --no-deps --force-reinstall ./source
python -c "$loaded" | grep site-packages
