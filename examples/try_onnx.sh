#!/usr/bin/env bash
# Tries examples/export_onnx.py and examples/onnx_ddim.py on small models of every kind: exports
# them, samples with numpy and onnxruntime where there is no jax, and compares with the sampler of
# stemjax on the same noise. For CI, beside the test suite and not in it.
#
#   examples/try_onnx.sh           # makes two environments of 1.5 GB together and removes them
#   ONNX=DIR examples/try_onnx.sh  # keeps them in DIR for the next time
#
# The versions are those that were found to work:
#   jax2onnx 0.17.1    the only maintained converter of JAX programs
#   jax 0.11.2         it asks jax for a name that 0.12 removed (jax._src.core.ClosedJaxpr)
#   orbax-checkpoint   it wants one below 0.11.37, which stemjax is not tested with, and does not
#                      use it in converting: its word is overridden
#   onnx, onnxruntime  opset 23
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
: "${ONNX:=$scratch/environments}"
export JAX_PLATFORMS=cpu
if [[ ! -x $ONNX/run/bin/python ]]; then
  echo "orbax-checkpoint>=0.12.8" > "$scratch/overrides.txt"
  uv venv --quiet --no-config --python 3.12 "$ONNX/export"
  uv pip install --quiet --no-config --python "$ONNX/export/bin/python" \
    --overrides "$scratch/overrides.txt" -e "$root" \
    jax2onnx==0.17.1 jax==0.11.2 jaxlib==0.11.2 onnx==1.23.2
  uv venv --quiet --no-config --python 3.12 "$ONNX/run"
  uv pip install --quiet --no-config --python "$ONNX/run/bin/python" numpy onnxruntime==1.32.0
fi
cd "$scratch"

# Models with random weights, their exports, and what stemjax draws.
PYTHONPATH=$root/examples "$ONNX/export/bin/python" - <<'PY'
import dataclasses, logging, pathlib

import export_onnx
import jax
import numpy as np

from stemjax import config
from stemjax.data import space, transforms
from stemjax.diffusion import rules, sampler
from stemjax.export import bundle, published
from stemjax.train import card, trained

GENES, WIDTH, SPOTS, STEPS = 9, 7, 37, 20
CASES = {
    "published": ({}, {"process": "ddpm", "mean_fraction": 0.0}),
    "edm": ({}, {"residual": True, "sigma_data": 0.7}),
    "lite": ({"kind": "lite"}, {"marginal": True}),
    "bfloat16": ({"dtype": "bfloat16", "attention": "chunked"}, {}),
    "latents": ({"kind": "lite", "latents": 3}, {}),
}


def standardisation(rng, width):
    return transforms.Standardisation(mean=rng.normal(size=width), std=rng.uniform(1, 2, width))


def make(name):
    rng = np.random.default_rng(0)
    model, diffusion = CASES[name]
    made = card.Card(
        experiment=config.Experiment(
            name=name,
            model=config.Model(width=16, depth=2, heads=2, **model),
            diffusion=config.Diffusion(**diffusion),
        ),
        space=space.Space(
            genes=tuple(f"G{i}" for i in range(GENES)),
            transform="log2p1",
            expression=standardisation(rng, GENES),
            condition=standardisation(rng, WIDTH),
        ),
        contract=dataclasses.replace(published.UNI_CONCH, name="toy", width=WIDTH),
        split={"train": ["T1"], "val": [], "test": [], "kind": "none"},
        panel={"genes": [f"G{i}" for i in range(GENES)], "rule": "toy", "slides": ["T1"]},
        versions={"stemjax": "0"},
    )
    shapes = jax.eval_shape(made.task.init, jax.random.key(0))

    def leaf(x):  # variance 1 / inputs for kernels, the order of 1 elsewhere
        scale = x.shape[-2] ** -0.5 if len(x.shape) > 1 else 0.3
        return jax.numpy.asarray(scale * rng.normal(size=x.shape), "float32")

    return trained.Trained(params=jax.tree.map(leaf, shapes), card=made, step=1, weights="best")


def draw(model, embeddings, noise, mean):
    task, space = model.card.task, model.card.space
    cond = space.encode_condition(embeddings)
    keys = jax.random.split(jax.random.key(0), SPOTS)
    if mean:
        return space.values(task.predict(model.params, cond, keys, sampling=task.sampling())[0])
    rungs = task.sampling(sampler="ddim", steps=STEPS).on(task.levels).rungs
    denoise = task.denoiser(model.params, cond)
    return space.values(sampler.sample(denoise, rungs, rungs[0] * noise, keys, rule=rules.Ddim()))


logging.getLogger("onnx_ir").setLevel(logging.ERROR)
rng = np.random.default_rng(1)
embeddings = rng.normal(size=(SPOTS, WIDTH)).astype(np.float16)
noise = rng.normal(size=(SPOTS, GENES)).astype(np.float32)
np.save("embeddings.npy", embeddings)
np.save("noise.npy", noise)
for name in CASES:
    model = make(name)
    if name == "edm":
        bundle.write(model, name)
    else:
        export_onnx.export(model, pathlib.Path(f"{name}.onnx"))
    if name == "bfloat16":  # which the export computes in float32
        experiment = model.card.experiment
        experiment = dataclasses.replace(experiment, model=config.Model(width=16, depth=2, heads=2))
        model = dataclasses.replace(
            model, card=dataclasses.replace(model.card, experiment=experiment)
        )
    np.save(f"{name}.sample.wanted.npy", draw(model, embeddings, noise, mean=False))
    if name not in ("published", "bfloat16"):
        np.save(f"{name}.mean.wanted.npy", draw(model, embeddings, noise, mean=True))
print(f"jax {jax.__version__}")
PY
"$ONNX/export/bin/python" "$root/examples/export_onnx.py" edm -o edm.onnx

# Samples and means where only numpy and onnxruntime are, in portions of 16 spots of 37.
cp "$root/examples/onnx_ddim.py" .
draw=("$ONNX/run/bin/python" onnx_ddim.py --rows 16)
for name in published edm lite latents bfloat16; do
  "${draw[@]}" "$name.onnx" embeddings.npy --noise noise.npy -o "$name.sample.profiles.npy"
done
for name in edm lite latents; do
  "${draw[@]}" "$name.onnx" embeddings.npy --mean -o "$name.mean.profiles.npy"
done
"$ONNX/run/bin/python" - <<'PY'
import runpy, sys

sys.argv = ["onnx_ddim.py", "edm.onnx", "embeddings.npy", "-o", "again.npy"]
runpy.run_path("onnx_ddim.py", run_name="__main__")
loaded = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print("modules:", *sorted(name for name in loaded if not name.startswith("_")))
assert not loaded & {"jax", "jaxlib", "stemjax", "flax", "torch"}
import pathlib

import numpy as np
import onnxruntime

files = sorted(pathlib.Path().glob("*.wanted.npy"))
assert len(files) == 8
for file in files:
    name, mode = file.name.split(".")[:2]
    ours, theirs = np.load(file), np.load(f"{name}.{mode}.profiles.npy")
    gap, largest = float(np.abs(ours - theirs).max()), float(np.abs(ours).max())
    print(f"{name} {mode}: largest difference {gap:.1e}, of {largest:.1f}")
    # float32 on both sides: seen is 2e-6 of the largest. Samples of the published process with
    # random weights are large: at its top an answer is multiplied by 157.
    assert theirs.shape == ours.shape and gap < 1e-5 * max(1.0, largest), name
print(f"numpy {np.__version__}, onnxruntime {onnxruntime.__version__}")
PY
