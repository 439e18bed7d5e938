#!/usr/bin/env bash
# Tries what `stemjax export --format torch-edm` writes in PyTorch: models of every kind are loaded
# by the module beside them and compared with stemjax, and the golden file of the test suite with
# the module. For CI, beside the test suite and not in it.
#
#   examples/try_torch.sh            # makes an environment of .8 GB (PyTorch for CPUs) and removes it
#   TORCH=DIR examples/try_torch.sh  # keeps it in DIR for the next time
#
# PyTorch is in no environment of stemjax, and need not run on the same Python: here 3.11, any from
# 3.10 on will do (TORCH_PYTHON). A folder of wheels in PIP_FIND_LINKS is looked at too, for a
# build for CPUs: the one that Linux gets by default brings CUDA, 3 GB and more.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
: "${TORCH:=$scratch/environment}"
if [[ ! -x $TORCH/bin/python ]]; then
  uv venv --quiet --no-config --python "${TORCH_PYTHON:-3.11}" "$TORCH"
  uv pip install --quiet --no-config --python "$TORCH/bin/python" \
    ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} torch==2.13.0 numpy safetensors
fi

# Bundles, their exports by the command, and what stemjax makes of some inputs.
cd "$root"
JAX_PLATFORMS=cpu PYTHONPATH=tests/export uv run python - "$scratch" <<'PY'
import pathlib, sys

import numpy as np
import test_torch_edm as ours

from stemjax import cli
from stemjax.export import bundle

out = pathlib.Path(sys.argv[1])
for case in ours.golden.CASES:
    model = ours.make_trained(case)
    bundle.write(model, out / "bundles" / case)
    command = ["export", str(out / "bundles" / case), "--format", "torch-edm"]
    assert cli.main([*command, "-o", str(out / case)]) == 0
    np.savez(out / f"{case}.npz", **ours.run_here(model))
PY

"$TORCH/bin/python" tests/export/make_golden_edm.py --check
PYTHONPATH=tests/export "$TORCH/bin/python" - "$scratch" <<'PY'
import importlib.util, pathlib, sys

import make_golden_edm as golden
import numpy as np
import torch

out = pathlib.Path(sys.argv[1])
for case in golden.CASES:
    spec = importlib.util.spec_from_file_location("stem_edm", out / case / "stem_edm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load(out / case)
    made, wanted = golden.run(module, model, golden.make_inputs()), np.load(out / f"{case}.npz")
    gaps = {name: float(np.abs(made[name] - wanted[name]).max()) for name in wanted.files}
    print(f"{case}:", ", ".join(f"{name} {gap:.0e}" for name, gap in gaps.items()))
    for name, gap in gaps.items():  # as in tests/export/test_torch_edm.py
        assert gap < (1e-4 if name in ("heun", "ddim") else 1e-5), (case, name)

    # Without the library safetensors, which PyTorch does not bring, the same weights are read.
    weights = model.network.state_dict()
    sys.modules |= dict.fromkeys(("safetensors", "safetensors.torch"))  # None: an ImportError
    alone = module.load(out / case).network.state_dict()
    del sys.modules["safetensors"], sys.modules["safetensors.torch"]
    assert all(torch.equal(alone[name], weights[name]) for name in weights)

    # The way of the docstring: draws differ, their values are finite.
    cond = model.encode(torch.from_numpy(golden.make_inputs()["embeddings"]))
    draws = model.decode(model.sample(cond.repeat_interleave(3, 0), steps=4, sampler="ddim"))
    assert draws.isfinite().all() and not torch.equal(draws[0], draws[1])
print(f"torch {torch.__version__}, numpy {np.__version__}")
PY
