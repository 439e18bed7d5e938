"""Cases of storage: something is damaged, and the next user of it must not be misled."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from tests.faults import artefacts, damage, digests, training, verdicts
from tests.faults.scene import Scene, last_start

_VERIFY = 0.25
"""Share of the cases whose user is ``stemjax verify``."""


def _inflict(scene: Scene, root: pathlib.Path, **given: Any) -> damage.Damage:
    """Damages something, and notes it."""
    done = damage.inflict(root, scene.rng, **given)
    scene.notes.append(f"{done.how} in {done.path.relative_to(scene.folder)}")
    return done


def _verify(scene: Scene, path: pathlib.Path, done: damage.Damage, *, root: pathlib.Path) -> str:
    """Asks ``stemjax verify`` of something damaged.

    Raises:
      Silent: it finds nothing wrong with a file that is not as it was.
    """
    said = scene.run(["verify", str(path)], "verify")
    verdicts.require_plain(said, {0, 1})
    if said.code == 0:
        # A file that is there twice is not damage: every file is as it was written.
        if done.how == "double":
            return "verify: right"
        raise verdicts.Silent(f"verify finds nothing wrong with {done.path.name}", said)
    if not said.says(*done.names(root)):
        raise verdicts.Lost(f"verify does not name {done.path.name}", said)
    return f"verify: named [{said.typed}]"


def step(scene: Scene) -> str:
    """A checkpoint step is damaged: the run goes on from a good one, and names the bad one."""
    workdir = artefacts.copy(scene.art.folder / "half", scene.folder / "run")
    steps = digests.of_steps(workdir / "checkpoints")
    newest = scene.chance(0.8)
    chosen = steps[-1] if newest else steps[0]
    root = workdir / "checkpoints" / str(chosen)
    done = _inflict(scene, root)
    what = f"{done.how} in {done.path.relative_to(workdir)}"
    if scene.chance(_VERIFY):
        return f"{what}: " + _verify(scene, workdir, done, root=workdir)
    argv = artefacts.train_argv(workdir, scene.art.records)
    after = functools.partial(digests.of_run, workdir)
    again = scene.run(argv, "again", after=after)
    names = (*done.names(root), f"checkpoints/{chosen}", f"step {chosen}")
    verdicts.require_plain(again, {0, 1})
    if again.code:
        if newest and len(steps) > 1:
            raise verdicts.Lost("it did not go on from the older step", again)
        verdicts.require_right_or_named(again, None, names, "the run")
        return f"{what}: named [{again.typed}]"
    training.require_undisturbed(scene, again)
    started = last_start(workdir)
    if newest and started != chosen and not again.says(*names):
        raise verdicts.Silent(f"went on from step {started} without a word", again)
    return f"{what}: went on from step {started}"


def best(scene: Scene) -> str:
    """The best weights are damaged."""
    workdir = artefacts.copy(scene.art.folder / "run", scene.folder / "run")
    chosen = digests.of_steps(workdir / "best")[-1]
    root = workdir / "best" / str(chosen)
    done = _inflict(scene, root)
    what = f"{done.how} in {done.path.relative_to(workdir)}"
    if scene.chance(_VERIFY):
        return f"{what}: " + _verify(scene, workdir, done, root=workdir)
    names = (*done.names(root), f"best/{chosen}")
    return f"{what}: " + _predict(scene, workdir, scene.art.records, names, "predict-mean")


def _predict(
    scene: Scene, model: pathlib.Path, records: pathlib.Path, names: Sequence[str], wanted: str
) -> str:
    out = scene.folder / "prediction.h5ad"
    argv = artefacts.predict_argv(model, records, out)
    said = scene.run(argv, "predict", after=functools.partial(digests.of_h5, out))
    return "predict: " + verdicts.require_right_or_named(
        said, scene.art.facts[wanted], names, "the prediction"
    )


def records(scene: Scene) -> str:
    """A file of the records is damaged."""
    root = artefacts.copy(scene.art.records, scene.folder / "records")
    slide = scene.pick(*artefacts.SLIDES)
    among = [path for path in damage.files(root) if slide in path.as_posix()]
    # The files of each slide are its shard, five of JSON and an image; the shard is what matters.
    shards = [path for path in among if "array_record" in path.name]
    extra = [path for path in damage.files(root) if len(path.relative_to(root).parts) == 1]
    done = _inflict(scene, root, among=[*among, *shards, *shards, *extra])
    what = f"{done.how} in {done.path.relative_to(root)}"
    # An older list of genes at the top is for those who prepare, and nobody reads it here.
    if scene.chance(_VERIFY):
        return f"{what}: " + _verify(scene, root, done, root=root)
    names = done.names(root)
    if scene.chance(0.5):
        model = scene.art.folder / "run"
        return f"{what}: " + _predict(scene, model, root, names, "predict-mean")
    workdir = scene.folder / "run"
    argv = artefacts.train_argv(workdir, root)
    said = scene.run(argv, "train", after=functools.partial(digests.of_run, workdir))
    found = verdicts.require_right_or_named(said, scene.art.facts["train"], names, "the run")
    return f"{what}: train: {found}"


def bundle(scene: Scene) -> str:
    """A file of a bundle is damaged."""
    root = artefacts.copy(scene.art.folder / "bundle", scene.folder / "bundle")
    done = _inflict(scene, root)
    what = f"{done.how} in {done.path.name}"
    if scene.chance(_VERIFY):
        return f"{what}: " + _verify(scene, root, done, root=root)
    names = (*done.names(root), f"no bundle at {root}", f"no checkpoint in {root}")
    return f"{what}: " + _predict(scene, root, scene.art.records, names, "predict-bundled")


def prediction(scene: Scene) -> str:
    """A prediction is damaged."""
    source = scene.art.folder / "predictions" / "mean.h5ad"
    path = artefacts.copy(source, scene.folder / "mean.h5ad")
    done = _inflict(scene, path)
    user = scene.pick("verify", "evaluate", "convert", "convert")
    if user == "verify":
        return f"{done.how}: " + _verify(scene, path, done, root=path)
    if user == "evaluate":
        out = scene.folder / "metrics.json"
        argv = artefacts.evaluate_argv(path, scene.art.records, out)
        digest, wanted = artefacts.of_scores, "evaluate"
    else:
        out = scene.folder / "spots.geojson"
        argv = ["convert", str(path), "--to", "qupath", "-o", str(out)]
        digest, wanted = digests.of_file, "convert-qupath"
    said = scene.run(argv, user, after=functools.partial(digest, out))
    found = verdicts.require_right_or_named(
        said, scene.art.facts[wanted], done.names(path), f"what {user} makes of it"
    )
    return f"{done.how}: {user}: {found}"


def draws(scene: Scene) -> str:
    """The draws beside a prediction are damaged: whoever asks for them is told."""
    folder = scene.folder / "predictions"
    path = artefacts.copy(scene.art.folder / "predictions" / "stored.h5ad", folder / "stored.h5ad")
    name = "stored.draws.zarr"
    root = artefacts.copy(scene.art.folder / "predictions" / name, folder / name)
    done = _inflict(scene, root)
    what = f"{done.how} in {done.path.relative_to(root)}"
    if scene.chance(0.5):
        return f"{what}: " + _verify(scene, scene.pick(root, path), done, root=folder)
    said = scene.call(functools.partial(_read_draws, root), "draws")
    verdicts.require_plain(said, {0})
    found = said.extra if isinstance(said.extra, dict) else {}
    if found.get("digest") == scene.art.facts["draws"]:
        return f"{what}: right"
    if "digest" in found:
        raise verdicts.Silent("other draws were read", said)
    if not str(found.get("code", "")).startswith("SJ-") or name not in str(found.get("text")):
        raise verdicts.Lost(f"the error of damaged draws is {found}", said)
    return f"{what}: named [{found['code']}]"


def _read_draws(root: pathlib.Path) -> dict[str, Any]:
    """The digest of a store's draws as `draw_files` opens it, or the error that says no."""
    from stemjax import errors
    from stemjax.eval import draw_files

    try:
        draw_files.open_draws(root)
        return {"digest": digests.of_zarr(root)}
    except errors.StemjaxError as error:
        return {"code": error.code, "text": str(error)}
    except Exception as error:  # noqa: BLE001 - what a caller would meet
        return {"code": type(error).__name__, "text": f"{error} {root.name}"}


def calibration(scene: Scene) -> str:
    """The calibration of a run, which lies beside its checkpoints, is damaged."""
    workdir = artefacts.copy(scene.art.folder / "run", scene.folder / "run")
    path = workdir / "calibration.json"
    # Without its calibrations a prediction has no intervals, and says so: no damage at all.
    done = _inflict(scene, path, how=("bit", "bit", "bytes", "truncate", "zero"))
    if scene.chance(_VERIFY):
        return f"{done.how}: " + _verify(scene, workdir, done, root=workdir)
    out = scene.folder / "prediction.h5ad"
    argv = artefacts.predict_argv(workdir, scene.art.records, out, *artefacts.DRAWS)
    said = scene.run(argv, "predict", after=functools.partial(digests.of_h5, out))
    found = verdicts.require_right_or_named(
        said, scene.art.facts["predict-draws"], (path.name,), "the prediction"
    )
    return f"{done.how}: predict: {found}"


def embeddings(scene: Scene) -> str:
    """A file of embeddings is damaged."""
    root = artefacts.copy(scene.art.folder / "embeddings", scene.folder / "embeddings")
    done = _inflict(scene, root)
    what = f"{done.how} in {done.path.name}"
    if scene.chance(_VERIFY):
        return f"{what}: " + _verify(scene, done.path.parent, done, root=root)
    out = scene.folder / "joined"
    argv = artefacts.prepare_argv(scene.art.folder, out, "--embeddings", str(root))
    said = scene.run(argv, "prepare", after=functools.partial(digests.of_folder, out))
    names = (*done.names(root), done.path.stem)
    found = verdicts.require_right_or_named(said, scene.art.facts["join"], names, "the records")
    return f"{what}: prepare: {found}"


KINDS: dict[str, Callable[[Scene], str]] = {
    "step": step,
    "best": best,
    "records": records,
    "bundle": bundle,
    "prediction": prediction,
    "draws": draws,
    "calibration": calibration,
    "embeddings": embeddings,
}
