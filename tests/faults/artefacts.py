"""What is disturbed: slides, records, a run, a bundle, predictions and embeddings, made once."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.faults import children, digests, verdicts

SLIDES = ("drawn-1", "drawn-2", "drawn-3")
VAL, TEST = SLIDES[1:]
EXPERIMENT = pathlib.Path(__file__).with_name("experiment.py")
STEPS, SAVE_EVERY, HALF = 24, 4, 16
DRAWS = ("--mode", "draws", "--n-draws", "4", "--steps", "2")

_DONE = "artefacts.json"
_SPOTS, _GENES = 40, 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artefacts:
    """Where the undisturbed things are, and what is known of them.

    Attributes:
      folder: holds all of them.
      cache: of compiled programs.
      facts: digests of undisturbed results by name, and seconds that their commands took.
    """

    folder: pathlib.Path
    cache: pathlib.Path
    facts: Mapping[str, Any]

    @property
    def records(self) -> pathlib.Path:
        """The records of all slides."""
        return self.folder / "records"

    def seconds(self, name: str) -> float:
        """How long the undisturbed command took."""
        return float(self.facts["seconds"][name])


def environment(cache: pathlib.Path | None) -> dict[str, str | None]:
    """The environment of every command; None keeps no compiled programs."""
    return {
        "STEMJAX_CACHE": "off" if cache is None else str(cache),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": None,
        "JAX_COMPILATION_CACHE_DIR": None,
    }


def train_argv(workdir: pathlib.Path | str, records: pathlib.Path, *more: str) -> list[str]:
    """The command that trains the experiment."""
    where = [f"--config={EXPERIMENT}", f"--workdir={workdir}", f"--config.data.records={records}"]
    return ["train", *where, *more]


def predict_argv(
    checkpoint: pathlib.Path, records: pathlib.Path, output: pathlib.Path | str, *more: str
) -> list[str]:
    """The command that predicts the test slide."""
    where = ["--checkpoint", str(checkpoint), "--records", str(records), "-o", str(output)]
    return ["predict", *where, *(more if "--slides" in more else ("--slide", TEST, *more))]


def prepare_argv(art_folder: pathlib.Path, out: pathlib.Path | str, *more: str) -> list[str]:
    """The command that makes records."""
    where = ["--data", str(art_folder / "slides"), "--out", str(out), "--test", TEST]
    given = ["--genes", str(art_folder / "genes.txt"), "--variants", "2", "--workers", "1"]
    return ["prepare", *where, *given, *more]


def make(folder: pathlib.Path, mark: str) -> Artefacts:
    """Returns the artefacts of a folder, made there unless this code made them before.

    Raises:
      SystemExit: an undisturbed command failed.
    """
    from stemjax.train import runs

    code = runs.code_digest()
    done, cache = folder / _DONE, folder / "cache"
    if done.exists():
        facts = json.loads(done.read_text())
        if facts["code"] == code:
            return Artefacts(folder=folder, cache=cache, facts=facts)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    facts = {"code": code, "seconds": {}}
    _Maker(folder, cache, facts, mark).make()
    done.write_text(json.dumps(facts, indent=1))
    return Artefacts(folder=folder, cache=cache, facts=facts)


class _Maker:
    def __init__(
        self, folder: pathlib.Path, cache: pathlib.Path, facts: dict[str, Any], mark: str
    ) -> None:
        self.folder, self.facts = folder, facts
        self._env = {**environment(cache), children.MARK: mark}
        (folder / "logs").mkdir()

    def make(self) -> None:
        f = self.folder
        self._call("slides", functools.partial(_draw, f))
        self._do("prepare", prepare_argv(f, f / "records"), digests.of_folder, f / "records")
        records = f / "records"
        # Twice: the first compiles, the second tells how long it takes.
        self._do("train", train_argv(f / "first", records), digests.of_run, f / "first")
        self._do("train", train_argv(f / "run", records), digests.of_run, f / "run")
        self._call("half", functools.partial(_stop_half, f / "half", records))
        calibrate = ["calibrate", str(f / "run"), "--records", str(records), *DRAWS]
        self._do("calibrate", calibrate, digests.of_file, f / "run" / "calibration.json")
        export = ["export", str(f / "run"), "--format", "bundle", "-o", str(f / "bundle")]
        self._do("export", export, digests.of_folder, f / "bundle")
        last = ["export", str(f / "run"), "--format", "bundle", "--weights", "last"]
        self._do("older", [*last, "-o", str(f / "older-bundle")], None, None)
        self._predictions(records)
        encode = ["encode", str(f / "slides"), "--variants", "2", "--workers", "1"]
        self._do("encode", [*encode, "-o", str(f / "embeddings")], None, None)
        again = prepare_argv(f, f / "joined", "--embeddings", str(f / "embeddings"))
        self._do("join", again, digests.of_folder, f / "joined")

    def _predictions(self, records: pathlib.Path) -> None:
        f, bundle = self.folder, self.folder / "bundle"
        for name, model, more in (
            ("mean", f / "run", ()),
            ("bundled", bundle, ()),
            ("last", f / "run", ("--weights", "last")),
            ("draws", f / "run", DRAWS),
            ("stored", bundle, (*DRAWS, "--draws", "zarr")),
        ):
            out = f / "predictions" / f"{name}.h5ad"
            self._do(
                f"predict-{name}", predict_argv(model, records, out, *more), digests.of_h5, out
            )
        store = f / "predictions" / "stored.draws.zarr"
        self._call("draws", functools.partial(digests.of_zarr, store))
        cohort = predict_argv(bundle, records, f / "cohort", "--slides", "all", "--block", "8")
        self._do("cohort", cohort, of_cohort, f / "cohort")
        prediction = f / "predictions" / "mean.h5ad"
        for name, out in (("qupath", f / "spots.geojson"), ("ome-zarr", f / "image.zarr")):
            convert = ["convert", str(prediction), "--to", name, "-o", str(out)]
            digest = digests.of_file if out.suffix == ".geojson" else digests.of_folder
            self._do(f"convert-{name}", convert, digest, out)
        older = ["convert", str(f / "predictions" / "last.h5ad"), "--to", "qupath"]
        self._do("older", [*older, "-o", str(f / "older.geojson")], None, None)
        out = f / "evaluated" / "metrics.json"
        self._do("evaluate", evaluate_argv(prediction, records, out), of_scores, out)

    def _do(
        self,
        name: str,
        argv: Sequence[str],
        digest: Callable[[pathlib.Path], Any] | None,
        result: pathlib.Path | None,
    ) -> None:
        after = None if digest is None or result is None else functools.partial(digest, result)
        done = self._run(name, argv, after)
        earlier = self.facts["seconds"].get(name, done.seconds)
        self.facts[name] = done.extra
        self.facts["seconds"][name] = min(done.seconds, earlier)

    def _call(self, name: str, function: Callable[[], Any]) -> None:
        self.facts[name] = self._run(name, (), function).extra

    def _run(
        self, name: str, argv: Sequence[str], after: Callable[[], Any] | None
    ) -> verdicts.Done:
        child = children.Child(
            argv, cwd=self.folder, logs=self.folder / "logs" / name, env=self._env, after=after
        )
        with children.ending(child):
            done = child.wait(300)
        try:
            return verdicts.require_done(done)
        except verdicts.Lost as failed:
            why = f"the undisturbed {name} failed: {failed.why}"
            raise SystemExit(f"{why}\n{done.describe()}") from failed


def evaluate_argv(
    prediction: pathlib.Path | str, records: pathlib.Path, out: pathlib.Path | str
) -> list[str]:
    """The command that scores a prediction, without what takes long."""
    few = ["--resamples", "0", "--regression", "none", "--leave-out", "MLP"]
    return ["evaluate", str(prediction), "--truth", str(records), *few, "-o", str(out)]


def of_cohort(folder: pathlib.Path) -> dict[str, str]:
    """Digest of every prediction of a folder, and the names of what else is there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            # What is hidden is unfinished: nobody reads it.
            whole = path.suffix == ".h5ad" and not name.startswith(".") and "/." not in name
            found[name] = digests.of_h5(path) if whole else ""
    return found


def of_scores(path: pathlib.Path) -> str:
    """Digest of the numbers of an evaluation."""
    values = json.loads(path.read_text())
    return json.dumps({k: values.get(k) for k in ("slides", "rows")}, sort_keys=True)


def _draw(folder: pathlib.Path) -> None:
    from stemjax import demo
    from stemjax.data import drawing
    from tests import drawn_slides

    for number, name in enumerate(SLIDES):
        slide, _ = drawing.draw_section(
            demo.LAW, seed=700 + number, id=name, patient=f"P{number}", n_spots=_SPOTS
        )
        drawn_slides.write_hest(folder / "slides", slide)
    (folder / "genes.txt").write_text("\n".join(demo.LAW.genes[:_GENES]) + "\n")


def _stop_half(workdir: pathlib.Path, records: pathlib.Path) -> dict[str, Any]:
    """Trains to `HALF`, as an interrupted run would have."""
    from stemjax import compilation, config, configfile
    from stemjax.data import records as records_lib
    from stemjax.train import loop

    compilation.enable_cache()
    given = [f"--config.data.records={records}"]
    experiment = config.resolve(configfile.load(str(EXPERIMENT), given))
    loop.train(experiment, records_lib.open_records(records), workdir, stop_at=HALF)
    return digests.of_run(workdir)


def copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Copies a file or folder of the artefacts, to be disturbed; returns the copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copyfile(source, target)
        os.chmod(target, 0o600)
    return target


def clear(folder: pathlib.Path) -> None:
    """Makes a folder empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
