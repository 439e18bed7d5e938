"""What an experiment consists of: frozen dataclasses, each key with its type and default."""

from __future__ import annotations

import dataclasses
from typing import Literal

from stemjax.names import split_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Which records, which slides are held out, and how they become arrays.

    Attributes:
      records: record directories, comma-separated.
      test: slides that training never sees, comma-separated.
      val: slides for choices (early stopping, hyperparameters), comma-separated; may be empty.
      manifest: file of folds (`stemjax split`) that says the roles instead of the two above.
      fold: the fold of the manifest.
      leakage: where a test patient also has a training slide, ``mark`` the result or ``refuse``.
      transform: ``log2p1`` (published), ``log1p_cp10k`` or ``log1p`` (HEST-Benchmark).
      standardise_expression: scale each gene to mean 0, std 1 over the training spots.
      standardise_condition: scale each embedding feature likewise.
      augment: choose one of the 8 flips and rotations per record and step; else the original.
      residence: where the training rows lie: ``device`` (every accelerator holds them, and a step
        is handed row numbers alone), ``ram``, ``stream`` (read from disk at every step), or
        ``auto``: the first of these where they fit; on a CPU the device is the RAM.
      decks: decks that the training rows are dealt into, each with its own part of every batch. A
        process then holds the decks of its part of the batch, and with ``device`` so does a device
        where the devices that share a batch divide them; 1 has all rows everywhere. The order of
        the rows depends on it.
      allow_seen_panel: accept a test slide on which the gene panel was selected.
      recover: slides of which a share of the spots is hidden, to be recovered from the others,
        comma-separated; their measured spots train. The panel may have been chosen on them.
      train: slides that train, comma-separated; by default every slide that has no other role, but
        none beside those of ``recover``.
      hide: what is hidden of them, single ``spots`` or whole ``blocks``.
      hide_share: share of the spots that is hidden.
      hide_seed: chooses them.
      hide_block: side of a block, in distances between neighbouring spots.
      on_corrupt: of records that cannot be read, make an ``error``, or ``skip`` them: train and
        validate as if they had never been written, which the log and the model's card say.
      corrupt_share: largest share of the training rows, and of the validation rows, that is
        skipped; more is an error.
    """

    records: str = ""
    test: str = ""
    val: str = ""
    manifest: str = ""
    fold: str = ""
    leakage: Literal["mark", "refuse"] = "mark"
    transform: Literal["log2p1", "log1p_cp10k", "log1p"] = "log2p1"
    standardise_expression: bool = True
    standardise_condition: bool = True
    augment: bool = True
    residence: Literal["auto", "ram", "stream", "device"] = "auto"
    decks: int = 1
    allow_seen_panel: bool = False
    recover: str = ""
    train: str = ""
    hide: Literal["spots", "blocks"] = "spots"
    hide_share: float = 0.5
    hide_seed: int = 0
    hide_block: float = 5.0
    on_corrupt: Literal["error", "skip"] = "error"
    corrupt_share: float = 0.001


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Kind, size and precision of the network.

    ``kind`` is ``stem``, a token a gene (`stemjax.models.stem.StemConfig`), ``lite``, the whole
    profile through one vector or through so many ``latents`` (`stemjax.models.lite.LiteConfig`), or
    one that is no denoiser and predicts a mean from the spots around: ``histosge`` and
    ``histosge_published`` (`stemjax.models.histosge.HisToSGEConfig`; ``head_width`` is theirs, 0
    divides the width among the heads).
    ``remat`` is the older spelling of ``train.remat = "blocks"``, which stored experiments have.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: int = 4
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    attention: Literal["auto", "xla", "chunked", "cudnn", "flash", "splash"] = "auto"
    kind: Literal["stem", "lite", "histosge", "histosge_published"] = "stem"
    latents: int = 0
    head_width: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Which other spots of its slide a spot is predicted from, and the network that does it.

    Attributes:
      kind: ``none``; ``neighbours``, the measured spots nearest to it; or ``rows``, consecutive
        rows of the slide, as HisToSGE is published with.
      length: spots in a window, the spot itself included.
      hide: largest share of a window's measured spots that training hides at random; it differs
        from window to window, evenly from 0 on.
      noise: standard deviation of the noise that training adds to the expression that tokens see,
        in the model's space.
      condition_noise: the same for the embeddings that tokens see.
      components: principal components of the training rows' expression, in which the network
        interpolates; a panel of fewer genes has as many as genes.
      members: networks that are trained side by side and averaged.
      bag: share of the spots that each member is not trained on, which tells Stem with neighbours
        what a mean leaves where it has not seen the spot.
      width: of Stem with neighbours, the width of the network that gives its mean, which is a
        ``histosge`` of one layer (where that is the whole model, ``model`` has its size).
      reaches: of Stem with neighbours, reaches in um of the Gaussian-weighted means of the measured
        neighbours that its condition holds, comma-separated.
    """

    kind: Literal["none", "neighbours", "rows"] = "none"
    length: int = 25
    hide: float = 0.0
    noise: float = 0.0
    condition_noise: float = 0.0
    components: int = 10
    members: int = 1
    bag: float = 0.0
    width: int = 32
    reaches: str = "100,200,400"

    @property
    def reaches_um(self) -> tuple[float, ...]:
        """The reaches as numbers."""
        return tuple(float(name) for name in split_names(self.reaches))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Process, training noise and loss; see `stemjax.tasks.StemTask`.

    Attributes:
      process: ``edm``; ``ddpm``, the published process: eps and learned variance over 1000 linear
        betas, which has none of the options below (mean_fraction must be 0); or ``consistency``:
        a trained ``edm`` model is tuned to draw in one evaluation or a few
        (`stemjax train --start`), over levels that are ``loguniform``.
      noise: law of the training noise levels, ``lognormal`` or ``loguniform`` (log-SNR uniform).
      noise_mean: mean of ln sigma (EDM's P_mean), for ``lognormal``.
      noise_std: standard deviation of ln sigma (EDM's P_std), for ``lognormal``.
      noise_min: smallest noise level, for ``loguniform``.
      noise_max: largest noise level, for ``loguniform``.
      weight: loss weight over noise levels, ``edm``, ``min_snr`` or ``soft_min_snr``.
      weight_gamma: signal-to-noise ratio at which the last two level off.
      sigma_data: standard deviation of the model's space; with ``residual``, of what the
        condition leaves unexplained.
      mean_fraction: share of each batch trained as the mean token; 1 is plain regression.
      condition_noise: standard deviation of the noise added to the condition in training, in units
        of its standardised features; regularises as ridge does.
      condition_dropout: share of spots trained without their condition, which classifier-free
        guidance needs.
      residual: diffuse the expression less its mean given the condition (CorrDiff's form).
      partner: with process ``consistency``, what a noisy spot is paired with: ``teacher``, where a
        step of the starting model leads (distillation, which few spots need), or ``data``, the
        same spot with less of the same noise (better where spots abound).
      marginal: train a second output channel as the log variance of each gene given the
        condition, for the spread in one evaluation (mode marginal).
    """

    process: Literal["edm", "ddpm", "consistency"] = "edm"
    noise: Literal["lognormal", "loguniform"] = "lognormal"
    noise_mean: float = -1.2
    noise_std: float = 1.2
    noise_min: float = 0.01
    noise_max: float = 80.0
    weight: Literal["edm", "min_snr", "soft_min_snr"] = "edm"
    weight_gamma: float = 5.0
    sigma_data: float = 1.0
    mean_fraction: float = 0.1
    condition_noise: float = 0.0
    condition_dropout: float = 0.0
    residual: bool = False
    marginal: bool = False
    partner: Literal["teacher", "data"] = "teacher"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW with warm-up, clipping and an exponential moving average of the weights.

    Attributes:
      learning_rate: peak rate.
      schedule: ``constant`` or ``cosine`` (to zero at the last step) after the warm-up.
      warmup: steps of linear warm-up.
      weight_decay: AdamW's, on kernels only.
      clip: global norm of the gradient.
      ema: decay of the moving average; ramps up as (1 + step) / (10 + step).
    """

    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 100
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.9999


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Length, rhythm and memory of a run; lengths are in steps.

    Attributes:
      steps: updates in all.
      batch: spots an update, over all devices.
      accumulate: parts that a batch is worked through in, one after another, before the update.
        More parts need less memory; on a CPU, parts of about 8 stay in its caches and halve the
        time.
      steps_per_call: updates handed to the device at a time, at most; it takes the largest number
        that divides log_every, validate_every and save_every. Worth it on an accelerator whose
        update takes no longer than the host's handing it over; the same numbers up to rounding.
      remat: whether each block is computed again in the backward pass instead of kept, about a
        third more arithmetic for a fraction of the memory: ``none``, ``blocks``, or ``auto``, which
        does so where the compiled update would not fit the accelerator's memory.
      log_every: steps between metrics.
      validate_every: steps between validations on ``data.val``; 0 is never.
      save_every: steps between checkpoints.
      keep: checkpoints kept.
      rollback_after: so many updates in a row that are not finite, each of which is skipped, send
        the run back to its last checkpoint.
      rollbacks: times that a run goes back, at most; the same step twice ends it at once.
    """

    steps: int = 300_000
    batch: int = 256
    accumulate: int = 1
    steps_per_call: int = 1
    remat: Literal["auto", "none", "blocks"] = "auto"
    log_every: int = 50
    validate_every: int = 1000
    save_every: int = 1000
    keep: int = 2
    rollback_after: int = 5
    rollbacks: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """How the devices of all processes are arranged; no result depends on it beyond rounding.

    What is left over is data parallel: the batch is split over devices / genes.

    Attributes:
      fsdp: devices that the large weights, their averages and moments are split over, for models
        that do not fit one; they share the batch as well.
      genes: devices that the gene tokens of a spot are split over, for panels of 1,000 and more.
    """

    fsdp: int = 1
    genes: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that a run needs besides the records themselves."""

    name: str = "stem"
    seed: int = 0
    data: Data = Data()
    model: Model = Model()
    window: Window = Window()
    diffusion: Diffusion = Diffusion()
    optim: Optim = Optim()
    train: Train = Train()
    mesh: Mesh = Mesh()

    @property
    def val_slides(self) -> tuple[str, ...]:
        """Slides held out for choices."""
        return split_names(self.data.val)

    @property
    def recover_slides(self) -> tuple[str, ...]:
        """Slides of which a share of the spots is hidden."""
        return split_names(self.data.recover)

    @property
    def test_slides(self) -> tuple[str, ...]:
        """Slides held out for test."""
        return split_names(self.data.test)
