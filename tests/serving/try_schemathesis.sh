#!/usr/bin/env bash
# Has schemathesis send `stemjax serve` what its OpenAPI document allows, and what it does not: for
# CI, beside the test suite and not in it, since its pytest plugins slow every start of the suite.
#
#   tests/serving/try_schemathesis.sh                  # a minute; makes an environment and removes it
#   SCHEMATHESIS=DIR tests/serving/try_schemathesis.sh # keeps the environment in DIR
#
# Fails on a status or a body that the document does not name, on any 5xx but 503, and where wrong
# requests are accepted. Left out is the check that every request of the right form is accepted: how
# many rows the embeddings have follows from the barcodes, which no schema says.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT
: "${SCHEMATHESIS:=$scratch/environment}"
if [[ ! -x $SCHEMATHESIS/bin/schemathesis ]]; then
  uv venv --quiet --no-config --python 3.12 "$SCHEMATHESIS"
  uv pip install --quiet --no-config --python "$SCHEMATHESIS/bin/python" 'schemathesis>=4.32,<5'
fi
SCHEMATHESIS=$(realpath "$SCHEMATHESIS")
cd "$root"
export JAX_PLATFORMS=cpu

PYTHONPATH=benchmarks uv run python - "$scratch/model" <<'PY'
import sys

import serving

from stemjax import config, configfile
from stemjax.export import bundle

small = ["--config.model.width=16", "--config.model.depth=1"]
experiment = config.resolve(configfile.load("configs/stem_her2st.py", small))
bundle.write(serving.make_model(experiment, genes=8, condition=6), sys.argv[1])
PY
uv run stemjax serve "$scratch/model" --port 0 --modes mean,draws --n-draws 4 --steps 2 \
  >"$scratch/out" &
server=$!
for _ in $(seq 120); do
  address=$(sed -n 's/: 8 genes from .*//p' "$scratch/out")
  [[ -z $address ]] || ! curl -sf "$address/readyz" >/dev/null || break
  kill -0 "$server"
  sleep 1
done
cd "$scratch" # schemathesis leaves a folder where it runs
"$SCHEMATHESIS/bin/schemathesis" run "$address/openapi.json" --no-color --seed 1 \
  --checks all --exclude-checks positive_data_acceptance --continue-on-failure \
  --max-examples "${EXAMPLES:-200}"
curl -s "$address/metrics" | grep '^stemjax_requests_total{path="/v1/profiles"'
[[ $(curl -s "$address/metrics" | grep -c '^stemjax_requests_total.*status="5') == 0 ]] ||
  curl -s "$address/metrics" | grep '^stemjax_requests_total.*status="5' | (! grep -v 503)
kill -TERM "$server"
wait "$server"
server=
tail -1 "$scratch/out"
