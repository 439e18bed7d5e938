"""Embedding patches: the network alone, reading alone, and the two together as slides are embedded.

    uv run python benchmarks/encode.py --quick --json OUT
    uv run python benchmarks/encode.py --encoder uni --batch 64 --json OUT

Weights are random: what is measured depends on the architecture alone. The ways:

    forward    pixels on the device -> embeddings, for a batch
    read       patches out of an image in memory, brought to the encoder's input size
    pipeline   a slide: read by threads, to the device, normalised, embedded, fetched

``kept`` of the pipeline is the share of its time that the forward passes of its batches take by
themselves, timed in turn with it: 1 where reading, copying and fetching cost nothing. FLOP are
those of the matrix products by formula, and ``share`` is of the device's rate for a large product
of that dtype in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import roofs
import scipy.sparse

from stemjax import mesh
from stemjax.data import images, patches, slides
from stemjax.encoders import encoder as encoder_lib
from stemjax.encoders import registry
from stemjax.models.vit import network
from stemjax.models.vit.spec import ViTSpec

QUICK = ViTSpec(image=224, patch=16, width=192, depth=4, heads=3, hidden=768)
"""In the place of the encoder's own network with ``--quick``."""

MPP = 0.5


def make_slide(spots: int, side_um: float) -> slides.Slide:
    """Returns a slide of noise with room for patches of that side around its spots."""
    rng = np.random.default_rng(0)
    margin, step, across = side_um / MPP, 60.0, max(1, round(spots**0.5))
    column, row = np.arange(spots) % across, np.arange(spots) // across
    xy = np.stack([margin + step * column, margin + step * row], axis=1)
    width, height = (int(value + margin) for value in xy.max(axis=0))
    return slides.Slide(
        id="noise",
        patient=None,
        counts=scipy.sparse.csr_array((spots, 0), dtype=np.int32),
        genes=(),
        barcodes=tuple(f"s{i}" for i in range(spots)),
        array_xy=np.stack([column, row], axis=1).astype(np.float32),
        pixel_xy=xy.astype(np.float32),
        image=images.ArrayImage(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)),
        mpp=MPP,
        spot_diameter_um=55.0,
        sources={},
        measured=False,
    )


def make_encoder(name: str, *, quick: bool, dtype: str, batch: int) -> encoder_lib.JaxEncoder:
    """Returns an encoder with random weights on this process's devices."""
    entry = registry.resolve(name)
    spec = QUICK if quick else entry.spec
    if spec is None:
        raise SystemExit(f"{entry.name} does not run here")
    kind = encoder_lib.DTYPES[dtype]
    params = jax.jit(network.make_vit(spec).init)(jax.random.key(0))
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf.astype(kind) if "kernel" in jax.tree_util.keystr(path) else leaf,
        params,
    )
    contract = entry.contract(fov_um=entry.default_fov_um, source="benchmark", revision="random")
    return encoder_lib.JaxEncoder(
        spec,
        params,
        contract=dataclasses.replace(contract, width=spec.features, input_px=spec.image),
        files={},
        dtype=dtype,
        batch=batch,
        layout=mesh.local_layout(),
    )


def forward_line(
    encoder: encoder_lib.JaxEncoder, measured: roofs.Roofs, *, batch: int, repeats: int
) -> tuple[dict[str, Any], Callable[[], jax.Array]]:
    """Returns the line of the network alone, on one device, and the call of one batch."""
    spec = encoder.spec
    apply = network.make_vit(spec, dtype=encoder_lib.DTYPES[encoder.dtype]).apply
    pixels = jax.random.normal(jax.random.key(1), (batch, spec.image, spec.image, 3))
    params = jax.device_put(encoder.params, jax.local_devices()[0])
    built = harness.build(lambda params, pixels: apply(params, pixels), (params, pixels))
    ending = measured.around()
    timing = harness.time_program(
        built, lambda i: (params, pixels + jnp.float32(i)), repeats=repeats, warm_up=1
    )
    roof = ending()
    rate = batch / timing.median
    peak = roof["matmul_flop_per_s"][encoder.dtype]
    rating = roof["rating"]
    line = {
        "way": "forward",
        "dtype": encoder.dtype,
        "batch": batch,
        "patches_per_s": rate,
        "flop_per_patch": spec.flops,
        "flop_per_s": rate * spec.flops,
        "share": rate * spec.flops / peak,
        "share_of_rating": rate * spec.flops / rating["bfloat16"] if rating else None,
        **timing.line,
    }
    return line, lambda: built.program(params, pixels)


def slide_lines(
    encoder: encoder_lib.JaxEncoder,
    slide: slides.Slide,
    forward: Callable[[], jax.Array],
    *,
    batch: int,
    variants: int,
    workers: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Returns the lines of reading alone and of the pipeline, on all devices."""
    passes = variants * -(-slide.n_spots // (batch * jax.local_device_count()))

    def read() -> None:
        for _ in patches.patch_batches(slide, encoder.contract, batch=batch, workers=workers):
            pass

    def embed() -> np.ndarray:
        return encoder.embed(slide, variants=variants, workers=workers)

    def alone() -> None:
        for _ in range(passes):
            jax.block_until_ready(forward())

    found = []
    for way, call, each in (("read", read, 1), ("pipeline", embed, variants)):
        timing = harness.time_calls(call, repeats=repeats, warm_up=1)
        rate = slide.n_spots * each / timing.median
        line = {"way": way, "dtype": encoder.dtype, "batch": batch, "patches_per_s": rate}
        found.append({**line, "variants": each, "workers": workers, **timing.line})
    # In turn: on a shared machine two rates of different minutes have no ratio.
    shares = [_seconds(alone) / _seconds(embed) for _ in range(repeats)]
    found[-1]["kept"] = float(np.median(shares))
    return found


def _seconds(call: Callable[[], Any]) -> float:
    return harness.time_calls(call, repeats=1, warm_up=0).median


def read_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags, with the defaults that ``--quick`` and the device change."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="uni", help="whose architecture (default: uni)")
    parser.add_argument(
        "--dtypes", type=harness.names, default=["bfloat16", "float32"], metavar="A,B"
    )
    parser.add_argument("--batch", type=int, help="patches on a device at once")
    parser.add_argument("--spots", type=int, help="patches of the slide")
    parser.add_argument("--variants", type=int, default=1, help="flips and turns of each patch")
    parser.add_argument("--workers", type=int, default=2, help="threads that read")
    parser.add_argument("--repeats", type=int, help="timed calls")
    parser.add_argument("--quick", action="store_true", help="a small network, under a minute")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="write the result here")
    args = parser.parse_args(argv)
    on_cpu = jax.default_backend() == "cpu"
    batch = args.batch or (8 if on_cpu else 64)
    harness.fill(
        args,
        {
            "batch": batch,
            "spots": 8 * batch if on_cpu or args.quick else 64 * batch,
            "repeats": 3 if args.quick else 10,
        },
    )
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the result, after printing each line."""
    about, lines = harness.surroundings(), []
    slide = make_slide(args.spots, registry.resolve(args.encoder).default_fov_um)
    measured = roofs.Roofs(repeats=args.repeats)
    for dtype in args.dtypes:
        encoder = make_encoder(args.encoder, quick=args.quick, dtype=dtype, batch=args.batch)
        first, forward = forward_line(encoder, measured, batch=args.batch, repeats=args.repeats)
        beside = slide_lines(
            encoder, slide, forward, batch=args.batch,
            variants=args.variants, workers=args.workers, repeats=args.repeats,
        )  # fmt: skip
        for line in (first, *beside):
            lines.append(line)
            harness.emit(line)
    name = registry.resolve(args.encoder).name
    return harness.result(
        "encode", about, None, lines,
        encoder=f"{name}, a small network" if args.quick else name, spots=args.spots,
        quick=args.quick, roof=measured.mean,
    )  # fmt: skip


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    import samplers

    rows = []
    for line in result["lines"]:
        share = f"{line['share']:.0%}" if "share" in line else ""
        kept = f"{line['kept']:.0%}" if "kept" in line else ""
        rate = f"{line['patches_per_s']:,.{0 if line['patches_per_s'] >= 100 else 2}f}"
        rows.append([line["way"], line["dtype"], f"{line['batch']}", rate, share, kept])
    head = ["way", "dtype", "batch", "patches/s", "of the roof", "of the forward passes kept"]
    network = "a small network" if result["quick"] else f"the network of {result['encoder']}"
    return (
        f"{network[0].upper()}{network[1:]} with random weights, {result['spots']} patches of a "
        f"slide in memory, one variant each; the roof is a large product in that dtype.\n\n"
        f"{samplers.markdown(head, rows)}"
    )


def main() -> None:
    """Measures, prints a line for each way, writes the JSON."""
    args = read_flags()
    result = run(args)
    if args.json:
        harness.save(args.json, result)


if __name__ == "__main__":
    main()
