#!/usr/bin/env bash
# Gradescope runs this once, as root, when the autograder is uploaded. It installs the version that made the course.
set -euo pipefail
autograder=${AUTOGRADER:-/autograder}  # another place, to try it out

python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "expected Python 3.10 or newer: choose Ubuntu 22.04 or newer as the base image" >&2
    exit 1
}
apt-get update
apt-get install -y --no-install-recommends python3-venv g++

python3 -m venv "$autograder/venv"
cd "$autograder/source"
"$autograder/venv/bin/python" -m pip install --no-cache-dir -r requirements.txt

# Compile the simulation of CUDA now, not for every submission. Grade the template, which must compile, run and fail
# (exit code 1) because it writes no result yet. Without a compiler it would fail with another message.
export TORCH_EXTENSIONS_DIR="$autograder/libraries"
"$autograder/venv/bin/sbnref" lab template softmax > "$autograder/template.cu"
report=$("$autograder/venv/bin/sbnref" lab check --json "$autograder/template.cu" --task softmax --examples 1) || [ $? = 1 ]
echo "$report"
[[ $report = *"some elements of y are never written"* ]] || {
    echo "expected the template of kernels to compile and to run" >&2
    exit 1
}
