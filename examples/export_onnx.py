"""Writes the denoiser of a bundle or workdir as ONNX, for an environment of its own.

    python examples/export_onnx.py MODEL -o FOLDER

FOLDER then holds ``denoiser.onnx``, D(x [b g], sigma [b], cond [b c]) -> x0 [b g] for any number of
rows b, with preconditioning and weights inside, and ``config.json``: genes, transform, both
standardisations, encoder, noise levels. `onnx_ddim.py` samples from the two with numpy and
onnxruntime alone. Of a ``residual`` model it is the denoiser of x0 less its mean. At sigma = inf it
answers with the mean, where ``has_mean``.

What was run of this, and with which versions: `try_onnx.sh`, which makes the environment.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax2onnx
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from stemjax import config, errors, tasks
from stemjax.data import integrity
from stemjax.diffusion import denoiser
from stemjax.export import bundle, torch_edm
from stemjax.train.trained import Trained


def main() -> None:
    """Parses the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path, help="a bundle, or the workdir of a run")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    # onnx_ir says of each scan that it leaves out types, which onnxruntime infers.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    export(bundle.open_model(args.model), args.output)


def export(trained: Trained, output: pathlib.Path) -> None:
    """Writes denoiser.onnx and config.json, whole or not at all.

    Raises:
      ConfigError: the model has no denoiser of single spots.
      BundleError: something stands at ``output``.
    """
    card = trained.card
    if not isinstance(card.task, tasks.StemTask | tasks.DdpmTask):
        raise errors.ConfigError(
            "export to ONNX", expected="a denoiser of single spots", found=type(card.task).__name__
        )
    output = output.resolve()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise errors.BundleError(f"{output} is in the way", expected="nothing there")
    genes, condition = card.task.genes, card.contract.width
    model = jax2onnx.to_onnx(
        rows(trained),
        [("b", genes), ("b",), ("b", condition)],
        input_names=["x", "sigma", "cond"],
        output_names=["x0"],
        model_name="denoiser",
    )
    with integrity.published_folder(output) as folder:
        (folder / "denoiser.onnx").write_bytes(model.SerializeToString())
        values = {"step": trained.step, "weights": trained.weights, **torch_edm.describe(card)}
        integrity.write_text(folder / "config.json", json.dumps(values, indent=1) + "\n")


def rows(trained: Trained) -> Callable[..., jax.Array]:
    """Returns the denoiser of rows, traced for one row and mapped over them.

    One row is traced here, before jax2onnx puts its own operations in the place of Flax's, which
    cannot be mapped; and a map needs no arithmetic on the unknown number of rows.
    """
    card, experiment = trained.card, trained.card.experiment
    # float32, since few CPUs have operations on bfloat16; attention without a kernel or a loop.
    model = dataclasses.replace(experiment.model, dtype="float32", attention="xla")
    task: Any = config.make_task(
        dataclasses.replace(experiment, model=model),
        genes=len(card.space.genes),
        condition=card.contract.width,
    )

    def network(x: jax.Array, level: jax.Array, cond: jax.Array) -> jax.Array:
        output = task.network.apply(trained.params, x[None], level[None], cond[None])[0]
        return output[0] if output.ndim == 2 else output  # eps or x0; the other is a variance

    def edm(x: jax.Array, sigma: jax.Array, cond: jax.Array) -> jax.Array:
        # Of a residual model this is the residual's: the loop adds the mean, once a spot.
        c = denoiser.Preconditioning(sigma_data=task.sigma_data).scalings(sigma)
        # The level of the mean token is in the thousands, where the last bit of a logarithm is
        # 2e-4 of a phase: the number that training saw, and not what another library makes of it.
        level = jnp.where(jnp.isinf(sigma), mean_token, c.c_noise)
        return c.c_skip * x + c.c_out * network(c.c_in * x, level, cond)

    def published(x: jax.Array, sigma: jax.Array, cond: jax.Array) -> jax.Array:
        time = interpolated_time(sigma, np.log(task.process.sigmas))
        return x - sigma * network(x / jnp.hypot(1.0, sigma), time, cond)

    mean_token = float(denoiser.noise_level(jnp.asarray(jnp.inf)))
    one = edm if isinstance(task, tasks.StemTask) else published
    shapes = [(task.genes,), (), (card.contract.width,)]
    traced = jax.make_jaxpr(one)(*(jax.ShapeDtypeStruct(s, "float32") for s in shapes))
    return jax.vmap(lambda *inputs: folded(traced, *inputs))


def interpolated_time(sigma: jax.Array, log_sigmas: np.ndarray) -> jax.Array:
    """Returns the published process's time of a noise level, linear in ln sigma between its steps.

    As `ddpm.make_vp_denoiser` has it, without the search in a table that jax2onnx does not know:
    the stretches below sigma count 1 each, its own stretch in part and those above 0.
    """
    share = (jnp.log(sigma) - log_sigmas[:-1]) / np.diff(log_sigmas)
    return jnp.sum(jnp.clip(share, 0.0, 1.0))


def folded(traced: ClosedJaxpr, *inputs: jax.Array) -> jax.Array:
    """Returns the one output of a traced function, with all that depends on no input computed now.

    The weights by which latents read and write the panel are such: products that jax2onnx gets
    wrong (an einsum with a letter twice) and that need not be in the file at all.
    """
    known = dict(zip(traced.jaxpr.constvars, traced.consts))
    known |= dict(zip(traced.jaxpr.invars, inputs))
    for equation in traced.jaxpr.eqns:
        values = [v.val if isinstance(v, Literal) else known[v] for v in equation.invars]
        options = equation.primitive.get_bind_params(equation.params)
        depends = any(isinstance(value, jax.core.Tracer) for value in values)
        with contextlib.nullcontext() if depends else jax.ensure_compile_time_eval():
            made = equation.primitive.bind(*values, **options)
        several = equation.primitive.multiple_results
        known |= dict(zip(equation.outvars, made if several else [made]))
    (output,) = traced.jaxpr.outvars
    return known[output]


if __name__ == "__main__":
    main()
