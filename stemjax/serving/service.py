"""The service without HTTP: a request is checked, computed in company, and answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from stemjax import __version__, errors
from stemjax.eval import conformal, predict, written
from stemjax.serving import batches, engine, meters, refusals, wire
from stemjax.serving import menu as menus
from stemjax.train import checkpoint

MOST_NUMBERS = 2**20
"""Values of an answer in numbers; writing many as text would keep everybody waiting."""

NOTICE = "Research use only. Not for clinical or diagnostic use."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What the service bears.

    Attributes:
      max_batch: spots computed at a time.
      max_wait_ms: how long a batch that is not full waits for company.
      max_spots: spots in a request.
      max_body_bytes: bytes of a request.
      timeout_s: seconds for a request, all together.
      queue: requests that wait.

    Raises:
      ConfigError: one of them cannot be.
    """

    max_batch: int = 256
    max_wait_ms: float = 2.0
    max_spots: int = 1024
    max_body_bytes: int = 32 * 2**20
    timeout_s: float = 60.0
    queue: int = 64

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_spots", "max_body_bytes", "queue"):
            if getattr(self, name) < 1:
                raise errors.ConfigError(
                    f"limit {name}", expected="at least 1", found=str(getattr(self, name))
                )
        if not (self.timeout_s > 0 and self.max_wait_ms >= 0):
            raise errors.ConfigError(
                "limits timeout_s and max_wait_ms",
                expected="above 0 and at least 0",
                found=f"{self.timeout_s} and {self.max_wait_ms}",
            )


class Service:
    """A model that answers requests.

    Args:
      trained: the model.
      menu: the ways of sampling that it offers.
      limits: what it bears.
      on_failed: called in the device's thread if no program can be compiled.

    Attributes:
      limits: what it bears.
      meters: what it counts.
      encoder_digest: SHA-256 of the model's encoder contract.
    """

    def __init__(
        self,
        trained: checkpoint.Trained,
        menu: menus.Menu,
        limits: Limits,
        *,
        on_failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._trained, self._menu, self.limits = trained, menu, limits
        card = trained.card
        self._engine = engine.Engine(trained, menu, max_batch=limits.max_batch)
        self._columns = {gene: column for column, gene in enumerate(card.space.genes)}
        self.encoder_digest = written.digest(card.contract.to_json())
        self._batcher = batches.Batcher(
            self._engine.profiles,
            capacity=self._engine.capacity,
            warm=self._engine.warm,
            queue=limits.queue,
            max_wait_s=limits.max_wait_ms / 1000,
            observe=lambda batch: self.meters.count_batch(batch),
            on_failed=on_failed,
        )
        self.meters = meters.Meters(
            queue_length=lambda: self._batcher.length,
            compilations=lambda: self._engine.compilations,
            ready=lambda: float(self._batcher.ready),
        )

    def start(self) -> None:
        """Starts to compile in a thread; `ready` tells when that is over."""
        self._batcher.start()

    def stop(self) -> None:
        """Accepts nothing more, finishes what was accepted, and returns."""
        self._batcher.stop()

    @property
    def ready(self) -> bool:
        """Whether everything is compiled and requests are accepted."""
        return self._batcher.ready

    @property
    def failure(self) -> Exception | None:
        """Why it cannot start, or None."""
        return self._batcher.failure

    def admit(self, request: wire.ProfilesRequest) -> batches.Job:
        """Returns the job of a request, accepted.

        Raises:
          TooLargeError: too many spots.
          EncoderMismatchError: the embeddings are of another encoder.
          FieldError, GenePanelError, ConfigError, CalibrationError: a field cannot be right.
          BusyError: the queue is full.
        """
        spots = len(request.barcodes)
        if spots > self.limits.max_spots:
            raise refusals.TooLargeError(
                "barcodes", expected=f"at most {self.limits.max_spots} spots a request",
                found=str(spots), fix="send them in several requests: the results are the same",
            )  # fmt: skip
        self._require_encoder(request.encoder)
        self._columns_of(request)
        if len(set(request.barcodes)) != spots:
            raise refusals.FieldError("barcodes", expected="each once", found="one twice")
        order = self._menu.order(request.mode, draws=request.draws, steps=request.steps)
        self._require_short(request, order)
        cond = self._trained.card.space.encode_condition(self._embeddings(request))
        rows = engine.Rows(
            cond=cond, seed=request.seed, slide=request.slide, barcodes=tuple(request.barcodes)
        )
        return self._batcher.submit(order, rows)

    def answer(
        self, request: wire.ProfilesRequest, job: batches.Job, found: engine.Arrays
    ) -> wire.ProfilesResponse:
        """Returns the answer to a request.

        Args:
          request: what was asked.
          job: its job.
          found: the job's arrays.

        Raises:
          NonFiniteError: the network made no number of these embeddings.
        """
        order, columns = job.order, self._columns_of(request)
        assert isinstance(order, menus.Order)
        if not np.isfinite(found[engine.MEAN]).all():
            bad = int(np.argmin(np.isfinite(found[engine.MEAN]).all(axis=1)))
            raise errors.NonFiniteError(
                f"the profile of spot {request.barcodes[bad]!r}",
                expected="finite values",
                found="NaN or infinity",
                fix="look at its embedding: it may be far outside of what the model was trained on",
            )

        def pack(name: str) -> Any:
            if name not in found:
                return None
            array = found[name] if columns is None else found[name][..., columns]
            return wire.pack(array, request.encoding)

        intervals, made = None, order.calibration
        if made is not None:
            names = [(level, *conformal.layer_names(level)) for level in made.levels]
            intervals = [
                wire.Interval(level=level, lower=pack(low), upper=pack(high))
                for level, low, high in names
            ]
        card = self._trained.card
        genes = card.space.genes if request.genes is None else request.genes
        self.meters.count_profiles(order.mode, len(request.barcodes))
        return wire.ProfilesResponse(
            model=wire.ModelIdentity(**self._trained.identity),
            slide=request.slide,
            barcodes=list(request.barcodes),
            genes=list(genes),
            seed=request.seed,
            mode=order.mode,
            value_space=card.space.transform,
            sampling=predict.describe_sampling(card, order.sampling),
            evaluations_per_spot=card.task.evaluations(order.sampling),
            mean=pack(engine.MEAN),
            std=pack(engine.STD),
            standard_error=pack(engine.STANDARD_ERROR),
            draws=pack(engine.DRAWS),
            intervals=intervals,
            calibration=None if made is None else made.describe(),
            notice=NOTICE,
        )

    def describe(self) -> wire.ModelResponse:
        """Returns what a client has to know of the model."""
        trained, card = self._trained, self._trained.card
        return wire.ModelResponse(
            model=wire.ModelIdentity(**trained.identity),
            genes=list(card.space.genes),
            value_space=card.space.transform,
            encoder=wire.Contract(**card.contract.to_json()),
            encoder_digest=self.encoder_digest,
            modes=list(self._menu.modes),
            samplings=self._menu.describe(),
            calibrations=[made.describe() for made in trained.calibrations],
            train_slides=list(card.split["train"]),
            limits=dataclasses.asdict(self.limits),
            stemjax_version=__version__,
            notice=NOTICE,
        )

    def _require_encoder(self, stated: str | wire.Contract) -> None:
        ours = self._trained.card.contract
        if isinstance(stated, wire.Contract):
            wire.contract_of(stated).require_same(ours, where="the request and the model")
        elif stated not in (ours.name, self.encoder_digest):
            raise errors.EncoderMismatchError(
                "the embeddings are of another encoder than the model's",
                expected=f"{ours.name!r}, or the digest {self.encoder_digest}",
                found=repr(stated[:80]),
                fix="embed the patches with the encoder that /v1/model describes",
            )

    def _require_short(self, request: wire.ProfilesRequest, order: menus.Order) -> None:
        """Refuses an answer of too many numbers as text: the arrays of an order, by their sizes."""
        genes = len(self._columns if request.genes is None else request.genes)
        arrays = 2 + order.sampling.draws if order.mode == "draws" else 1
        if order.calibration is not None:
            arrays += 2 * len(order.calibration.levels)
        values = len(request.barcodes) * genes * arrays
        if request.encoding == "numbers" and values > MOST_NUMBERS:
            raise refusals.FieldError(
                "encoding", expected=f"base64 for more than {MOST_NUMBERS:,} values",
                found=f"numbers, and {values:,} values", fix="or ask for fewer spots or genes",
            )  # fmt: skip

    def _columns_of(self, request: wire.ProfilesRequest) -> list[int] | None:
        """Columns of the genes that are wanted, in their order; None for all."""
        if request.genes is None:
            return None
        missing = [gene for gene in request.genes if gene not in self._columns]
        if missing or len(set(request.genes)) != len(request.genes):
            raise errors.GenePanelError(
                "genes",
                expected="genes of the model's panel, each once",
                found=f"{len(missing)} that are not in it: {', '.join(missing[:5])}"
                if missing
                else "one twice",
                fix="/v1/model lists them",
            )
        return [self._columns[gene] for gene in request.genes]

    def _embeddings(self, request: wire.ProfilesRequest) -> np.ndarray:
        """The embeddings as records hold them, float16 [n c]."""
        spots, width = len(request.barcodes), self._trained.card.contract.width
        given = request.embeddings
        if isinstance(given, wire.PackedEmbeddings):
            # The shape first: what it says is then the most that is decoded.
            shape = tuple(given.shape)
        else:
            widths = {len(row) for row in given}
            shape = (len(given), widths.pop() if len(widths) == 1 else -1)
        if shape != (spots, width):
            found = f"{shape[0]} x {shape[1] if shape[1] >= 0 else 'rows of different lengths'}"
            raise refusals.FieldError(
                "embeddings",
                expected=f"{spots} x {width}: a row a barcode, the encoder's width",
                found=found,
            )
        packed = isinstance(given, wire.PackedEmbeddings)
        array = given.array() if packed else np.asarray(given, np.float64)
        with np.errstate(over="ignore"):
            stored = array.astype(np.float16)
        bad = ~np.isfinite(stored).all(axis=1)
        if bad.any():
            row = int(bad.argmax())
            raise refusals.FieldError(
                f"the embedding of spot {request.barcodes[row]!r}",
                expected="finite values within +-65504, which float16 holds",
                found=f"{array[row][~np.isfinite(stored[row])][0]}",
                fix="check the encoder's output at this spot",
            )
        return stored
