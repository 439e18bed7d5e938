"""What is known of a model, field by field in plain words; what is not known says so.

`describe` is all that a model card and ``stemjax models info`` say: nothing in it is made up, and
nothing depends on when or where it is asked. Names of slides, genes and files are cleaned of
characters that would steer a terminal; whoever writes Markdown escapes them besides.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from stemjax import config, errors
from stemjax.train.trained import Trained

type Fields = dict[str, dict[str, str]]

UNITS = {
    "log2p1": "log2(count + 1)",
    "log1p": "ln(count + 1)",
    "log1p_cp10k": "ln(1 + counts per 10,000)",
}
LEAK = "LEAK"
"""How the field on leakage begins where test slides share a patient with training."""

_UNKNOWN = "unknown"
_SHOWN = ("pcc_all", "pcc_depth", "mse", "crps", "coverage_90")
_MOST = 20

# As the encoders' publishers are read by third parties, November 2026: a hint, no legal advice.
_NO_DERIVATIVES = "CC BY-NC-ND 4.0, access on request"
_LICENCES = {
    ("uni", "uni_v1", "uni2", "uni_v2", "conch", "conch_v1", "uni+conch"): _NO_DERIVATIVES,
    ("conch_v1_5", "conch_v15", "virchow2"): _NO_DERIVATIVES,
    ("h_optimus_1", "hoptimus1", "h0_mini"): _NO_DERIVATIVES,
    ("virchow",): "Apache-2.0, access on request",
    ("gigapath",): "Apache-2.0 with conditions, access on request",
    ("h_optimus_0", "hoptimus0"): "Apache-2.0",
    ("phikon", "phikon_v2"): "its publisher's own terms, non-commercial",
    ("ctranspath",): "GPL-3.0",
}
_LEAKS = {
    "interpolation within a patient": f"{LEAK}: a patient of the test slides also has a training "
    "or validation slide, so numbers on them are about interpolation within a patient, not about a "
    "new one",
    "new patient": "none known: no patient of a test slide took part in training",
    "patient unknown": "unknown: not all slides have a patient recorded",
    "no test slide": "no slide was held out for a test",
    "recovery within a slide": "spots of slides that also trained are recovered, so numbers are "
    "about interpolation within a slide, not about a new one",
}


def describe(trained: Trained) -> Fields:
    """Returns the fields of a model in plain words, by section, in the order of reading.

    Raises:
      BundleError: what is stored beside its weights is of another form than stemjax writes.
    """
    try:
        found = {
            "Model": _model(trained),
            "Genes": _genes(trained),
            "Slides": _slides(trained),
            "Encoder": _encoder(trained),
            "Training": _training(trained),
            "Sampling": _sampling(trained),
            "Evaluation": _evaluation(trained),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.BundleError(
            f"what is stored beside the weights cannot be read ({type(error).__name__}: {error})",
            fix="export the model again",
        ) from error
    return {
        section: {name: clean(text, most=4000) for name, text in fields.items()}
        for section, fields in found.items()
    }


def clean(text: object, *, most: int = 80) -> str:
    """Returns text on one line, without characters that control a terminal or turn its direction.

    Args:
      text: from anywhere.
      most: characters, beyond which it is cut.
    """
    # Controls, formats and surrogates; separators of lines and paragraphs are white space.
    kept = (" " if unicodedata.category(c).startswith("C") else c for c in str(text))
    line = " ".join("".join(kept).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def scores(trained: Trained) -> tuple[list[str], list[list[str]]]:
    """Returns what an evaluation said as a table: its heading and rows, the model's own first.

    Returns:
      Nothing in both where there is no evaluation, or none of a form that is known. A name that
      ends in `` *`` is of a row that sees the test slide's own measurements.
    """
    from stemjax.eval import scoring  # late: nothing else here needs what it imports

    given = trained.scores or {}
    rows = [row for row in _list(given.get("rows")) if _has(row, "name", "scores")]
    rows = [row for row in rows if isinstance(row["scores"], Mapping)]
    keys = [key for key in _SHOWN if any(key in row["scores"] for row in rows)]
    if not keys:
        return [], []
    head = ["", *(scoring.COLUMNS[key].title for key in keys)]
    table = []
    for row in rows:
        name = clean(row["name"]) + " *" * bool(row.get("sees_test"))
        cells = [_score(row["scores"].get(key), scoring.COLUMNS[key].digits) for key in keys]
        table.append([name, *cells])
    return head, table


def is_within_patient(trained: Trained) -> bool:
    """Whether numbers on its test slides are interpolation within a patient or a slide."""
    kinds = ("interpolation within a patient", "recovery within a slide")
    return trained.card.split.get("kind") in kinds


def _model(trained: Trained) -> dict[str, str]:
    card = trained.card
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(trained.params)]
    genes, units = len(card.space.genes), UNITS[card.space.transform]
    return {
        "Name": clean(card.experiment.name),
        "Infers": f"expression of {genes:,} genes at each spot of an H&E section, in {units}, from "
        f"the {clean(card.contract.name)} embedding of the patch under it{_surroundings(trained)}",
        "Network": _network(trained),
        "Parameters": f"{sum(sizes):,}",
        "Weights": f"{clean(trained.weights)}, of step {trained.step:,}",
        "Configuration": config.digest(card.experiment),
    }


def _surroundings(trained: Trained) -> str:
    window = trained.card.experiment.window
    if window.kind == "none":
        return ""
    what = {"neighbours": "measured spots around it", "rows": "the rows of spots around it"}
    return f" and {what[window.kind]} (windows of {window.length} spots)"


def _network(trained: Trained) -> str:
    model, diffusion = trained.card.experiment.model, trained.card.experiment.diffusion
    kinds = {
        "stem": "Stem (a transformer with a token a gene)",
        "lite": "lite (the whole profile through "
        + (f"{model.latents} latents" if model.latents else "one vector")
        + ")",
        "histosge": "HisToSGE (a transformer over spots)",
        "histosge_published": "HisToSGE as published (a transformer over spots)",
    }
    processes = {
        "edm": "diffusion in EDM's form",
        "ddpm": "the published diffusion process (1,000 steps, learned variance)",
        "consistency": "a consistency model",
    }
    size = f"width {model.width}, depth {model.depth}"
    if model.kind != "lite" or model.latents:
        size += f", {model.heads} heads"
    process = "a mean, no draws" if _is_mean(trained) else processes[diffusion.process]
    return f"{kinds[model.kind]}, {size}; {process}"


def _is_mean(trained: Trained) -> bool:
    return trained.card.experiment.model.kind in ("histosge", "histosge_published")


def _genes(trained: Trained) -> dict[str, str]:
    card = trained.card
    scaled = card.experiment.data.standardise_expression
    return {
        "Number": f"{len(card.space.genes):,}",
        "First": _some(card.space.genes, 10),
        "Chosen by": clean(card.panel.get("rule") or _UNKNOWN, most=400),
        "Chosen on": _some(card.panel.get("slides"))
        or "no slide that is recorded: the list was given",
        "Value space": f"{UNITS[card.space.transform]} ({card.space.transform})",
        "Standardised": "each gene to mean 0 and standard deviation 1 over the training spots; "
        "predictions come back in the value space"
        if scaled
        else "no",
    }


def _slides(trained: Trained) -> dict[str, str]:
    split, panel = trained.card.split, trained.card.panel
    # An imported checkpoint has lists that are empty because nobody knows.
    nothing = "none" if _list(split.get("train")) else _UNKNOWN
    kind = clean(split.get("kind") or _UNKNOWN)
    seen = sorted({*_list(split.get("test"))} & {*_list(panel.get("slides"))})
    found = {
        "Training": _some(split.get("train")) or nothing,
        "Validation": _some(split.get("val")) or nothing,
        "Test": _some(split.get("test")) or nothing,
        "Kind of split": kind,
        "Leakage": _LEAKS.get(kind, f"{_UNKNOWN}: what the split is has not been recorded"),
        "Patients": _patients(trained),
        "Panel and test slides": f"{LEAK}: the genes were also chosen on {_some(seen)}, held out "
        "for the test"
        if seen
        else "no test slide is known to have taken part in choosing the genes",
    }
    if split.get("recover"):
        found["Recovered"] = f"a share of the spots of {_some(split['recover'])} was hidden"
    if trained.card.start is not None:
        earlier = _some(trained.card.start["slides"])
        found["Seen before"] = f"by the weights it began with: {earlier}"
    return found


def _patients(trained: Trained) -> str:
    """A card keeps no patients of training slides; an evaluation does of the slides it scored."""
    slides = [one for one in _list((trained.scores or {}).get("slides")) if _has(one, "slide")]
    said = [f"{clean(s['slide'])} is of patient {clean(s['patient'])}"
            for s in slides if s.get("patient")]  # fmt: skip
    return "; ".join([*said[:_MOST], "of the other slides not stored with the model"])


def _encoder(trained: Trained) -> dict[str, str]:
    contract = trained.card.contract
    view = "a square of max(224 px, spot diameter) of the full image"
    if contract.fov_um is not None:
        view = f"{contract.fov_um:g} um"
    after = "" if contract.projection == "none" else f", then {clean(contract.projection)}"
    return {
        "Name": clean(contract.name),
        "Width": f"{contract.width:,} features",
        "Input": f"{contract.input_px} px a side, resized by {clean(contract.resize)}",
        "Field of view": view,
        "Pooling": clean(contract.pooling) + after,
        "Source": clean(contract.source),
        "Revision": clean(contract.revision),
        "Licence": licence(contract.name, contract.source),
    }


def licence(encoder: str, source: str) -> str:
    """Returns a sentence on the licence of an encoder, which its contract does not hold."""
    if source == "stemjax":
        return "computed by stemjax itself: no weights of others, no terms besides its Apache-2.0"
    for names, terms in _LICENCES.items():
        if encoder.lower() in names:
            return (
                f"said to be {terms} (November 2026): ask its publisher, also what its terms say "
                "of models trained on its embeddings"
            )
    return "not known here: ask its publisher"


def _training(trained: Trained) -> dict[str, str]:
    card, experiment = trained.card, trained.card.experiment
    versions = {clean(k): clean(v) for k, v in card.versions.items()}
    validation = ", ".join(
        f"{clean(name)} {value:.4g}" for name, value in (trained.validation or {}).items()
    )
    found = {"Steps": f"{trained.step:,} updates behind these weights"}
    if "imported_from" in card.versions:
        unknown = f"{_UNKNOWN}: imported from a published checkpoint, which does not say"
        found |= dict.fromkeys(("Batch", "Seed", "Optimiser"), unknown)
        found["Noise"] = "1,000 linear betas (DDPM)"
    else:
        optim = experiment.optim
        found["Steps"] += f", of {experiment.train.steps:,} planned"
        found |= {
            "Batch": f"{experiment.train.batch} spots",
            "Seed": str(experiment.seed),
            "Optimiser": f"AdamW, learning rate {optim.learning_rate:g} ({optim.schedule}), weight "
            f"decay {optim.weight_decay:g}; average of the weights with decay {optim.ema:g}",
            "Noise": _noise(trained),
        }
    if card.start is not None:
        found["Began with"] = f"the weights of another run, step {clean(card.start.get('step'))}"
    return found | {
        "Hardware": "; ".join(map(_run, trained.runs[-5:])) or f"{_UNKNOWN}: no run is recorded",
        "Versions": ", ".join(f"{name} {value}" for name, value in versions.items()) or _UNKNOWN,
        "Validation errors": validation
        or "none: no validation chose these weights, or it is not recorded",
    }


def _noise(trained: Trained) -> str:
    diffusion = trained.card.experiment.diffusion
    if _is_mean(trained):
        return "none: it is trained as a regression"
    if diffusion.process == "ddpm":
        return "1,000 linear betas (DDPM)"
    law = f"ln sigma normal, mean {diffusion.noise_mean:g}, std {diffusion.noise_std:g}"
    if diffusion.noise == "loguniform":
        law = f"ln sigma uniform, sigma {diffusion.noise_min:g} to {diffusion.noise_max:g}"
    return f"{law}; {diffusion.mean_fraction:.0%} of each batch trains the mean"


def _run(run: Mapping[str, Any]) -> str:
    def said(name: str) -> str:
        return clean(run.get(name, _UNKNOWN))

    versions = [f"{name} {said(name)}" for name in ("stemjax", "jax", "flax") if name in run]
    return (
        f"{said('devices')} x {said('device')} ({said('platform')}), {said('processes')} "
        f"process{'es' * (run.get('processes') != 1)}, from step {said('from_step')} on, begun "
        f"{said('date')}, {', '.join(versions)}, code {said('code')}"
    )


def _sampling(trained: Trained) -> dict[str, str]:
    card, task = trained.card, trained.card.task
    shape = {"genes": len(card.space.genes), "condition": card.contract.width}
    flops = config.flops_per_evaluation(card.experiment, **shape)
    drawn = "no draws: it predicts a mean"
    if not _is_mean(trained):
        drawn = ", ".join(f"{mode} {_cost(trained, mode)}" for mode in ("pair", "draws"))
    default = task.sampling()
    found = {
        "By default": f"mode {default.mode}, {_cost(trained, default.mode)}",
        "Draws": drawn,
        "Cost of an evaluation": f"{flops:,} floating-point operations, by formula",
    }
    if not _is_mean(trained) and not card.experiment.diffusion.mean_fraction:
        found["Mode mean"] = "not trained (mean_fraction 0): use pair or draws"
    return found


def _cost(trained: Trained, mode: str) -> str:
    task = trained.card.task
    try:
        sampling = task.sampling(mode=mode)
        calls = task.evaluations(sampling)
    except errors.ConfigError:
        return "is not among its modes"
    how = "" if mode == "mean" else f" ({sampling.sampler}, {sampling.steps} steps"
    how += f", {sampling.n_draws} draws)" if mode == "draws" else ")" if how else ""
    return f"{calls:,} evaluation{'s' * (calls != 1)} a spot{how}"


def _evaluation(trained: Trained) -> dict[str, str]:
    given = trained.scores
    if given is None:
        said = "not evaluated: no scores are stored with these weights"
    else:
        slides = [clean(s["slide"]) for s in _list(given.get("slides")) if _has(s, "slide")]
        said = f"on {_some(slides) or _UNKNOWN}, mode {clean(given.get('mode', _UNKNOWN))}"
        intervals = given.get("intervals") or {}
        if _has(intervals, "sentence"):
            said += f". {clean(intervals['sentence'], most=400)}"
    calibrated = []
    for one in trained.calibrations:
        shares = [
            f"{level:.0%}: " + ("not tried" if share is None else f"{share:.1%}")
            for level, share in zip(one.levels, one.held_out)
        ]
        held_out = f"coverage of held-out spots ({clean(one.held_out_by)})"
        mode = clean(one.sampling["mode"])
        calibrated.append(f"mode {mode} on {_some(one.slides)}, {held_out}: {', '.join(shares)}")
    return {"Scores": said, "Calibrated intervals": "; ".join(calibrated) or "none"}


def _some(names: Any, most: int = _MOST) -> str:
    found = [clean(name) for name in _list(names)]
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def _score(found: Any, digits: int) -> str:
    if not _has(found, "value") or not isinstance(found["value"], int | float):
        return "-"
    text, bounds = f"{found['value']:.{digits}f}", _list(found.get("interval"))
    if len(bounds) == 2 and all(isinstance(bound, int | float) for bound in bounds):
        text += f" [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"
    return text


def _list(found: Any) -> Sequence[Any]:
    """What a file has where a list should be."""
    return list(found) if isinstance(found, Iterable) and not isinstance(found, str) else []


def _has(found: Any, *names: str) -> bool:
    return isinstance(found, Mapping) and all(name in found for name in names)
