#!/usr/bin/env bash
# Tries which versions of JAX run a portable program (`stemjax export --format stablehlo`): each in an
# environment with jax, numpy and flatbuffers alone. For CI, beside the test suite and not in it.
#
#   examples/try_program.sh                    # a minute; makes environments and removes them
#   VERSIONS="0.12.0.1 0.11.1" examples/try_program.sh
#
# Every version that stemjax itself takes has to run it. 0.10.2 is known not to read it, and a version
# that does after all is said, so that docs/exporting.md is put right.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export JAX_PLATFORMS=cpu
cd "$root"
uv run stemjax export demo --format stablehlo --mode draws --n-draws 4 --sampler heun --steps 6 \
  -o "$scratch/program"
for version in ${VERSIONS:-0.12.0.1 0.11.2 0.11.1 0.10.2}; do
  python=$scratch/$version/bin/python
  uv venv --quiet --no-config --python 3.12 "$scratch/$version"
  uv pip install --quiet --no-config --python "$python" "jax==$version" flatbuffers
  if said=$("$python" "$scratch/program/run.py" 2>"$scratch/errors"); then
    apart=$(sed -E 's/.*, (.*) apart at most/\1/' <<<"$said")
    echo "jax $version: $said"
    python3 -c "import sys; sys.exit(float('$apart') > 1e-5)"
    [[ $version != 0.10.2 ]] || { echo "jax $version reads it now: docs/exporting.md" >&2; exit 1; }
  else
    echo "jax $version: $(grep -E '^[A-Za-z.]+(Error|Exception)' "$scratch/errors" | tail -1 | cut -c1-120)"
    [[ $version == 0.10.2 ]]
  fi
done
