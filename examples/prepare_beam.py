"""Prepare many slides with Apache Beam: the records of ``stemjax prepare``, a slide an element.

Beam is no dependency of stemjax: it wants older numpy and protobuf than stemjax is tested with, so
it has an environment of its own (``--no-config`` leaves out this project's list of versions):

    uv venv beam
    uv pip install --no-config --python beam/bin/python apache-beam .
    beam/bin/python examples/prepare_beam.py --layout st --data DATA --out records \
        --test C5 --direct_running_mode=multi_processing --direct_num_workers=4

What Beam does not know (``--direct_...``, ``--runner``) goes to Beam's own options. DATA and OUT
must be reachable from all workers under the same path. The panel is chosen before the pipeline.
A slide that fails is listed in OUT/failed and at the end, and the exit code is 1.

Use it where Beam is what you have. Otherwise ``stemjax prepare --shard I/N`` does the same with
nothing but processes; docs/preparing.md.

What was run of this, and what was not: see examples/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from stemjax import errors, names
from stemjax.data import failures, genes, layouts, no_image, prepare, slides


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What each worker needs: plain values, sent with every bundle of slides."""

    layout: str
    data: pathlib.Path
    out: pathlib.Path
    encoder: str
    ids: tuple[str, ...]
    genes: genes.Panel | None

    def read(self, slide_id: str) -> slides.Slide:
        """Reads a slide, as ``stemjax prepare`` does."""
        need_image = self.encoder != no_image.CONTRACT.name
        return layouts.layout(self.layout).read_slide(self.data, slide_id, need_image=need_image)


def write_slide(index: int, settings: Settings) -> str:
    """Writes the records of one slide, part ``index`` of as many parts as there are slides.

    What is no fault of the slide (a full disk) is raised, which ends the pipeline.
    """
    part = (index, len(settings.ids))
    try:
        prepare.prepare(
            settings.read,
            settings.ids,
            settings.out,
            part=part,
            genes=settings.genes,
            encoder=settings.encoder,
        )
    except errors.StemjaxError:
        return "failed"  # why is in OUT/failed
    return "prepared"


def main() -> int:
    """Runs the pipeline; 1 if a slide failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--layout", choices=names.LAYOUTS, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--slides", default="", metavar="IDS")
    parser.add_argument("--test", default="", metavar="IDS")
    parser.add_argument("--genes", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--n-genes", type=int, default=200, metavar="N")
    parser.add_argument("--encoder", default="texture")
    args, for_beam = parser.parse_known_args()
    ids = names.split_names(args.slides) or layouts.layout(args.layout).list_slides(args.data)
    settings = Settings(
        layout=args.layout,
        data=args.data.absolute(),
        out=args.out.absolute(),
        encoder=args.encoder,
        ids=tuple(ids),
        genes=genes.read_gene_list(args.genes) if args.genes else None,
    )
    panel = prepare.choose_panel(
        settings.read,
        ids,
        settings.out,
        test=names.split_names(args.test),
        genes=settings.genes,
        n_genes=args.n_genes,
    )
    settings = dataclasses.replace(settings, genes=panel)
    with beam.Pipeline(options=PipelineOptions(for_beam)) as pipeline:
        _ = (
            pipeline
            | beam.Create(range(len(ids)))
            | beam.Reshuffle()  # else all slides are one bundle, of one worker
            | beam.Map(write_slide, settings)
            | beam.combiners.Count.PerElement()
            | beam.MapTuple(lambda what, n: print(f"{n} slides {what}"))
        )
    failed = [failure for failure in failures.listed(settings.out) if failure.slide in ids]
    for failure in failed:
        print(f"{failure.slide}: {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
