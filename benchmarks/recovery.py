"""Recovery of hidden spots on HER2ST: models beside floors, kriging and ridge, held-out spots only.

    uv run python benchmarks/recovery.py --data ../shared/her2st --sections B1 C5 --json OUT

Half of each section's spots are hidden (a function of seed, section and spot), single spots, and
with ``--blocks`` whole squares too; models train on the other half of that section alone, unless
their row says that other sections train as well. Everything is scored on the hidden spots, in
log2(count + 1), with intervals over blocks of the section.

Every section is recovered from positions alone. Where a section has an image, models and rivals
also see the texture of the patch under each spot. Sections of ``--in-full`` have all models, the
others HisToSGE, the floors and the rivals. The panel is Stem's rule over all sections in the
folder, whichever are asked for.

The published HisToSGE has another value space; in the table it is trained and scored in the
table's, and once more in its own, where the scores on all spots, which are what is published, stand
beside those on hidden spots.

A section that OUT already holds is not measured again. docs/recovery.md quotes the full run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import harness
import numpy as np
import samplers
from recovery_tables import SEEN, tables

from stemjax import compilation, config, configfile, tasks
from stemjax.data import genes as gene_panels
from stemjax.data import prepare, records
from stemjax.data.layouts import st
from stemjax.eval import baselines, evaluate, metrics, predict
from stemjax.train import loop

if TYPE_CHECKING:
    import anndata

ROOT = pathlib.Path(__file__).resolve().parents[1]
N_GENES = 300
ENCODERS: dict[str, str] = dict(zip(SEEN, ("none", "texture"), strict=True))
SPACE = "log2p1"
SHOWN = ("pcc_all", "mse", "crps", "coverage_90", "rvd")
FLOOR = "nearest measured mean"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A row of the table.

    Attributes:
      name: of the row.
      config: file in configs/.
      sees: ``positions`` or ``image``.
      sampling: how it predicts.
      changes: keys of the configuration.
      others: whether the other sections with an image train too, with all their spots.
      everywhere: whether it is a row of every section, not of those alone that are shown in full.
    """

    name: str
    config: str
    sees: str
    sampling: tasks.Sampling = dataclasses.field(default_factory=tasks.Sampling)
    changes: tuple[str, ...] = ()
    others: bool = False
    everywhere: bool = False


PUBLISHED = (
    "--config.data.transform=log2p1",
    "--config.train.steps=400",
    "--config.train.save_every=400",
)
DRAWS = tasks.Sampling(mode="draws", n_draws=20)
STEM_ALONE = ("--config.window.kind=none",)
MODELS = (
    Model(name="HisToSGE", config="histosge", sees="positions", everywhere=True),
    Model(name="HisToSGE, published", config="histosge_published", sees="positions",
          changes=PUBLISHED),
    Model(name="Stem with neighbours", config="stem_neighbours", sees="positions",
          sampling=DRAWS),
    Model(name="HisToSGE", config="histosge", sees="image", everywhere=True),
    Model(name="HisToSGE, published", config="histosge_published", sees="image",
          changes=PUBLISHED),
    Model(name="Stem", config="stem_neighbours", sees="image", sampling=DRAWS,
          changes=STEM_ALONE),
    Model(name="Stem with neighbours", config="stem_neighbours", sees="image", sampling=DRAWS),
    Model(name="HisToSGE, other sections too", config="histosge", sees="image", others=True,
          changes=("--config.train.steps=300", "--config.train.save_every=300")),
    Model(name="Stem with neighbours, other sections too", config="stem_neighbours", sees="image",
          sampling=DRAWS, others=True,
          changes=("--config.train.steps=300", "--config.train.save_every=300")),
)  # fmt: skip


class Folder:
    """Records of HER2ST for both ways of seeing, made once.

    Args:
      data: folder with ST-cnts.
      out: where records and runs go.
    """

    def __init__(self, data: pathlib.Path, out: pathlib.Path) -> None:
        self.data, self.out = data, out
        self.sections = st.list_slides(data)
        read = [st.read_slide(data, name, need_image=False) for name in self.sections]
        self.imaged = tuple(slide.id for slide in read if slide.image is not None)
        self.panel = gene_panels.select_panel(
            [dataclasses.replace(slide, image=None) for slide in read], n_genes=N_GENES
        )
        self._opened: dict[str, records.Records] = {}

    def records(self, sees: str) -> records.Records:
        """The records of all sections that can be seen so."""
        if sees not in self._opened:
            self._opened[sees] = prepare.prepare(
                lambda name: st.read_slide(self.data, name, need_image=sees == "image"),
                self.imaged if sees == "image" else self.sections,
                self.out / f"records_{sees}",
                genes=self.panel,
                encoder=ENCODERS[sees],
                workers=2,
            )
        return self._opened[sees]


def experiment(
    model: Model, section: str, hide: str, imaged: Sequence[str], *overrides: str
) -> config.Experiment:
    """Returns the experiment of a row on a section."""
    others = ",".join(name for name in imaged if name != section) if model.others else ""
    changes = (
        *model.changes,
        f"--config.data.recover={section}",
        f"--config.data.train={others}",
        f"--config.data.hide={hide}",
        *overrides,
    )
    path = ROOT / "configs" / f"{model.config}.py"
    return config.resolve(configfile.load(str(path), changes))


def run(
    folder: Folder, model: Model, section: str, hide: str, *overrides: str
) -> tuple[anndata.AnnData, float]:
    """Returns a row's prediction of a section, and the seconds of training it took."""
    source = folder.records(model.sees)
    made = experiment(model, section, hide, folder.imaged, *overrides)
    name = f"{section}_{hide}_{model.sees}_{config.digest(made)}"
    started = time.perf_counter()
    trained = loop.train_shown(made, source, folder.out / "runs" / name, None)
    seconds = time.perf_counter() - started
    return predict.predict_slide(trained, source, section, model.sampling), seconds


def measure(folder: Folder, section: str, hide: str, models: Sequence[Model]) -> dict[str, Any]:
    """Returns all rows of a section, by what they see."""
    result: dict[str, Any] = {}
    alone: dict[str, anndata.AnnData] = {}
    for sees in ENCODERS:
        if sees == "image" and section not in folder.imaged:
            continue
        chosen = [model for model in models if model.sees == sees]
        made = {model.name: run(folder, model, section, hide) for model in chosen}
        predictions = {name: prediction for name, (prediction, _) in made.items()}
        first = predictions.pop("HisToSGE")
        if sees == "positions":
            alone = {"HisToSGE, positions alone": first}
        compare = predictions if sees == "positions" else predictions | alone
        found = evaluate.evaluate(first, folder.records(sees), compare=compare)
        result[sees] = {
            "rows": [line(row) for row in found["rows"]],
            "all_spots": found["slides"][0]["all_spots"],
            "hidden": found["slides"][0]["spots"],
            "blocks": found["intervals"]["count"],
            "seconds": {name: seconds for name, (_, seconds) in made.items()},
        }
    return result


def line(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an evaluated row."""
    return {
        "name": row["name"].removeprefix("prediction: "),
        "source": row["source"],
        "sees_test": row["sees_test"],
        "scores": {k: row["scores"][k] for k in SHOWN if k in row["scores"]},
        "less": {
            k: v for k, v in row.get("first_minus_row", {}).items() if k in ("pcc_all", "mse")
        },
    }


def published_claim(folder: Folder, section: str, sees: str) -> dict[str, Any]:
    """Returns the published configuration in its own value space: hidden spots, and all spots."""
    changes = ("--config.train.steps=400", "--config.train.save_every=400")
    model = Model(name="", config="histosge_published", sees=sees, changes=changes)
    prediction, seconds = run(folder, model, section, "spots")
    found = evaluate.evaluate(prediction, folder.records(sees), resamples=500)
    rows = {row["name"]: line(row)["scores"] for row in found["rows"]}
    return {
        "hidden": rows["prediction: mean"],
        "floor": rows[FLOOR],
        "all_spots": found["slides"][0]["all_spots"],
        "seconds": seconds,
    }


def leave_one_out(folder: Folder, section: str) -> dict[str, float]:
    """Returns the field's floor: each spot from its four nearest others, nothing hidden."""
    table = folder.records("positions").load([section])
    true = np.log2(table.counts + 1.0)
    pred = baselines.neighbour_mean(true, table.mask, table.array_xy)
    pcc = metrics.pcc_per_gene(pred, true, table.mask)
    return {"pcc_all": float(np.nanmean(pcc)), "mse": metrics.mse(pred, true, table.mask)}


def main() -> None:
    """Measures what is not measured yet, prints the tables, writes the JSON after each section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder with ST-cnts")
    parser.add_argument("--sections", nargs="*", default=[], help="default: all")
    parser.add_argument("--blocks", nargs="*", default=[], help="sections hidden in blocks too")
    parser.add_argument(
        "--in-full", nargs="*", default=["B1", "C5"], help="sections with all models and a table"
    )
    parser.add_argument("--work", type=pathlib.Path, help="keep records and runs there")
    parser.add_argument("--json", type=pathlib.Path, help="default: in benchmarks/results")
    args = parser.parse_args()
    compilation.enable_cache()
    path = args.json or samplers.RESULTS / "recovery.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder(args.data, args.work or pathlib.Path(scratch))
        wanted = args.sections or folder.sections
        if unknown := sorted({*wanted, *args.blocks} - set(folder.sections)):
            parser.error(f"no section {', '.join(unknown)}; there are {', '.join(folder.sections)}")
        result: dict[str, Any] = {
            **harness.surroundings(),
            "benchmark": "recovery",
            "panel": folder.panel.rule,
            "in_full": args.in_full,
            "sections": before.get("sections", {}),
            "published": before.get("published", {}),
            "leave_one_out": before.get("leave_one_out", {}),
        }
        for hide, names in (("spots", wanted), ("blocks", args.blocks)):
            done = result["sections"].setdefault(hide, {})
            for section in names:
                if section not in done:
                    print(f"{section}, {hide} hidden", flush=True)
                    full = section in args.in_full and hide == "spots"
                    chosen = [model for model in MODELS if model.everywhere or full]
                    done[section] = measure(folder, section, hide, chosen)
                    result["sections"][hide] = dict(sorted(done.items()))
                    harness.save(path, result)
        for section in wanted:
            result["leave_one_out"].setdefault(section, leave_one_out(folder, section))
        for section in set(wanted) & set(args.in_full):
            for sees in ENCODERS:
                key = f"{section}, {sees}"
                if key not in result["published"] and (
                    sees == "positions" or section in folder.imaged
                ):
                    result["published"][key] = published_claim(folder, section, sees)
        harness.save(path, result)
    print(tables(result))
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
