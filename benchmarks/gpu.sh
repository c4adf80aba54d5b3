#!/usr/bin/env bash
# Memory and speed of every phase on one NVIDIA card, in runs of 9 minutes that go on where the last one ended:
#
#   bash benchmarks/gpu.sh                                 # Llama-3.1-8B's shape; benchmarks/results/gpu.md
#   bash benchmarks/gpu.sh --shape llama-3.2-1b --cpu      # the same steps without a GPU
#
# benchmarks/gpu.py says more.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3
if ! "$python" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("torch", "transformers", "llama_cpp"))))'; then
    echo "error: $python has not all that tpo_lite needs. Install it first, as README.md says." >&2
    exit 2
fi
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m benchmarks.gpu "$@"
