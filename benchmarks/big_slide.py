"""A whole-slide image from file to expression: seconds, patches a second, and the most memory.

    uv run python benchmarks/big_slide.py --quick
    uv run python benchmarks/big_slide.py --out benchmarks/results/big_slide.json

The slide is made for the purpose by a process of its own: a pyramidal TIFF of JPEG tiles, 20,000 x
20,000 px at 0.5 um, drawn tissue repeated inside three outlines. Then one process goes the way of
a prediction, step after step, and after each says the most memory it held so far (resident, with
JAX's and Python's own): the run fails above `--limit-gb`.

    open       the pixel size and the places of the tiles
    grid       a thumbnail, the tissue in it, and the spots, 100 um apart
    read       the patches of all spots, by as many threads as there are cores
    embed      the built-in encoder on the first spots, by this process alone
    predict    the same spots from patches to profiles, by the model that comes with the package

A further step is a function of `Way`, named in `STEPS`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import harness
import numpy as np
import tifffile
from PIL import Image

import stemjax
from stemjax import tasks
from stemjax.data import drawing, patches, pixel_size, slides, synthetic, texture, wsi
from stemjax.data.layouts import image as layout
from stemjax.eval import new_slide

MPP = 0.5
TILE = 256
SIDE, QUICK_SIDE = 20_000, 4_000
OUTLINES = ((0.30, 0.34, 0.24), (0.72, 0.40, 0.21), (0.46, 0.78, 0.17))
"""Middle (x, y) and radius of the pieces of tissue, as shares of the side."""


def make_slide(path: pathlib.Path, side: int) -> None:
    """Writes the slide tile by tile; what is in memory does not grow with it."""
    law = synthetic.Law(seed=2)
    drawn, _ = drawing.draw_section(law, seed=5, id="s", patient=None, n_spots=40, mpp=MPP)
    assert drawn.image is not None
    x, y = drawn.image.width // 2 - 512, drawn.image.height // 2 - 512
    quarter = drawn.image.read(x, y, 1024, 1024)
    half = np.concatenate([quarter, quarter[:, ::-1]], axis=1)
    stain = Image.fromarray(np.concatenate([half, half[::-1]]))  # joins its own edges
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(int(np.log2(side / 500)) + 1):
            size = side >> level
            per_cm = 1e4 / MPP / 2**level
            tiff.write(
                _tiles(np.asarray(stain.reduce(2**level)), size, level),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                subfiletype=1 if level else 0,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def _tiles(stain: np.ndarray, size: int, level: int) -> Iterator[np.ndarray]:
    """The tiles of a level, row by row: stain inside the outlines, glass with some noise around."""
    rng = np.random.default_rng(level)
    noise = rng.normal(0, 2, (2 * TILE, 2 * TILE, 3)).astype(np.float32)
    period = len(stain)
    for top in range(0, size, TILE):
        for left in range(0, size, TILE):
            rows, columns = np.arange(top, top + TILE), np.arange(left, left + TILE)
            inside = _inside((columns + 0.5)[None] / size, (rows + 0.5)[:, None] / size)
            start = rng.integers(0, TILE, 2)
            glass = drawing.GLASS + noise[start[0] :, start[1] :][:TILE, :TILE]
            tissue = stain[np.ix_(rows % period, columns % period)]
            made = np.where(inside[..., None], tissue, glass)
            yield np.clip(made, 0, 255).astype(np.uint8)


def _inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    result = np.zeros(np.broadcast(x, y).shape, bool)
    for column, row, radius in OUTLINES:
        angle = np.arctan2(y - row, x - column)
        ragged = 1 + 0.08 * np.cos(3 * angle + 20 * column) + 0.03 * np.cos(11 * angle)
        result |= np.hypot(x - column, y - row) < radius * ragged
    return result


@dataclasses.dataclass(kw_only=True)
class Way:
    """What the steps hand on to each other.

    Attributes:
      path: the slide.
      workers: threads that read.
      embedded: spots whose patches are embedded.
      slide: what `grid` found.
    """

    path: pathlib.Path
    workers: int
    embedded: int
    slide: slides.Slide | None = None

    @property
    def found(self) -> slides.Slide:
        """The slide, once there is one."""
        assert self.slide is not None, "the step `grid` comes first"
        return self.slide

    @property
    def some(self) -> slides.Slide:
        """The slide with its first spots alone."""
        slide = self.found
        keep = np.arange(min(self.embedded, slide.n_spots))
        return dataclasses.replace(
            slide,
            counts=slide.counts[keep],
            barcodes=tuple(slide.barcodes[row] for row in keep),
            array_xy=slide.array_xy[keep],
            pixel_xy=slide.pixel_xy[keep],
        )


def open_slide(way: Way) -> dict[str, Any]:
    """Opens the image and reads its pixel size."""
    image, size = wsi.open_tiff(way.path), pixel_size.read_mpp(way.path)
    assert size is not None
    return {"width": image.width, "height": image.height, "mpp": size.mpp}


def lay_grid(way: Way) -> dict[str, Any]:
    """Reads the slide as a command would: its digest, the tissue, and the spots over it."""
    way.slide = layout.read_slide(way.path, way.path.stem)
    return {"spots": way.slide.n_spots, "notes": list(way.slide.notes)}


def read_all(way: Way) -> dict[str, Any]:
    """Reads every patch at the encoder's size."""
    batches = patches.patch_batches(
        way.found, texture.CONTRACT, batch=patches.CHUNK, workers=way.workers
    )
    return {"patches": sum(len(pixels) for _, pixels in batches)}


def embed(way: Way) -> dict[str, Any]:
    """Embeds the first spots, one variant kept; without workers, so that all memory is seen."""
    made = patches.embed_slide(way.some, texture.TextureEncoder(), variants=1)
    return {"patches": len(made)}


def predict(way: Way) -> dict[str, Any]:
    """Predicts the first spots, as `stemjax predict SLIDE` does: embedding is part of it."""
    sampling = tasks.Sampling(mode="mean")
    made = new_slide.predict_new_slide(
        stemjax.load("demo"), way.some, texture.TextureEncoder(), sampling
    )
    assert np.isfinite(np.asarray(made.X)).all()
    return {"patches": made.n_obs, "genes": made.n_vars}


STEPS: dict[str, Callable[[Way], dict[str, Any]]] = {
    "open": open_slide,
    "grid": lay_grid,
    "read": read_all,
    "embed": embed,
    "predict": predict,
}
"""In the order in which they go; each returns what its line says beside seconds and memory."""


def peak_rss_bytes() -> int:
    """Returns the most memory that this process has held, in bytes; its children are not in it."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(way: Way) -> Iterator[dict[str, Any]]:
    """Yields a line for each step: seconds, patches a second, memory."""
    for name, step in STEPS.items():
        facts: dict[str, Any] = {}

        def call(step: Callable[[Way], dict[str, Any]] = step, facts: Any = facts) -> None:
            facts |= step(way)

        # Once: a second reading would find the file in the system's cache, and a user reads once.
        seconds = harness.time_calls(call, repeats=1, warm_up=0).median
        line = {"step": name, "seconds": seconds, "peak_rss_bytes": peak_rss_bytes(), **facts}
        if "patches" in facts:
            line["patches_per_s"] = facts["patches"] / seconds
        yield line


def tables(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    import samplers

    rows = []
    for line in result["lines"]:
        rate = f"{line['patches_per_s']:,.0f}" if "patches_per_s" in line else ""
        memory = f"{line['peak_rss_bytes'] / 1e9:.2f}"
        rows.append([line["step"], f"{line['seconds']:,.2f}", rate, memory])
    spots = next(line["spots"] for line in result["lines"] if "spots" in line)
    within = "within" if result["within_limit"] else "ABOVE"
    head = ["step", "seconds", "patches/s", "most memory so far, GB"]
    size = f"{result['side']:,} x {result['side']:,} px"
    return (
        f"{size} of JPEG tiles ({result['file_bytes'] / 1e6:,.0f} MB), {spots:,} spots, "
        f"{result['workers']} threads read; {within} {result['limit_gb']:g} GB. `predict` embeds "
        f"again, in one process.\n\n{samplers.markdown(head, rows)}"
    )


def main(argv: list[str] | None = None) -> int:
    """Makes the slide, measures, prints a line of JSON a step; 1 if memory was above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SIDE:,} px, half a minute")
    parser.add_argument("--side", type=int, help=f"of the slide in px (default: {SIDE:,})")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--embed", type=int, help="spots embedded (default: all; 100 if quick)")
    parser.add_argument("--limit-gb", type=float, default=4.0, help="most memory (default: 4)")
    parser.add_argument("--make", type=pathlib.Path, help="only write the slide there")
    parser.add_argument("--out", type=pathlib.Path, metavar="PATH", help="write the result here")
    args = parser.parse_args(argv)
    harness.fill(
        args,
        {"side": QUICK_SIDE if args.quick else SIDE, "embed": 100 if args.quick else 10**9},
    )
    if args.make is not None:
        make_slide(args.make, args.side)
        harness.emit({"step": "make", "peak_rss_bytes": peak_rss_bytes()})
        return 0
    about = harness.surroundings()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "made.tif"
        # A process of its own: its memory is not that of reading.
        command = [sys.executable, __file__, "--side", str(args.side), "--make", str(path)]
        subprocess.run(command, check=True)
        size = path.stat().st_size
        lines = []
        for line in measure(Way(path=path, workers=args.workers, embedded=args.embed)):
            harness.emit(line)
            lines.append(line)
    peak = lines[-1]["peak_rss_bytes"]
    facts = {"side": args.side, "file_bytes": size, "workers": args.workers}
    facts |= {"limit_gb": args.limit_gb, "within_limit": peak <= args.limit_gb * 1e9}
    if args.out is not None:
        harness.save(args.out, harness.result("big_slide", about, None, lines, **facts))
    if not facts["within_limit"]:
        print(f"{peak / 1e9:.2f} GB of memory, above {args.limit_gb:g} GB", file=sys.stderr)
    return 0 if facts["within_limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
