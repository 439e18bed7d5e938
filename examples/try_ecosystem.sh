#!/usr/bin/env bash
# Opens what stemjax writes in the tools it is written for, really installed and unmodified: scanpy,
# squidpy, spatialdata, ome-zarr and lazyslide, in an environment of their own. For CI or by hand,
# beside the test suite and not in it.
#
#   examples/try_ecosystem.sh                # makes an environment of about 7 GB and removes it
#   ECOSYSTEM=DIR examples/try_ecosystem.sh  # keeps the environment in DIR for the next time
#
# Prints a line a tool with its version and ends with 0 if every check holds; 75 where the tools
# cannot be installed. What was run of this, and what was not: all of it, see examples/README.md.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
: "${ECOSYSTEM:=$scratch/environment}"
export JAX_PLATFORMS=cpu STEMJAX_CACHE=off MPLBACKEND=Agg
if [[ ! -x $ECOSYSTEM/bin/python ]]; then
  uv venv --quiet --no-config --python 3.12 "$ECOSYSTEM"
  # Lower bounds, and no constraints of the project: the resolver would fall back to an early
  # spatialdata that has no SpatialData in it.
  uv pip install --quiet --no-config --python "$ECOSYSTEM/bin/python" \
    scanpy "squidpy>=1.6" "spatialdata>=0.5" "lazyslide>=0.12" -e "$root" || {
    echo "scanpy, squidpy, spatialdata and lazyslide cannot be installed here: not tried" >&2
    exit 75
  }
fi
"$ECOSYSTEM/bin/python" "$root/examples/try_ecosystem.py" "$scratch/files"
