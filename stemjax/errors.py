"""Typed errors: what is wrong, what was expected, what was found, what to do.

Every error a user can meet is a `StemjaxError` with a stable ``code``. The message is composed of
the parts, so that a caller can show them apart and a test can look at each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_MOST_LISTED = 20


class StemjaxError(Exception):
    """A problem that the user can mend.

    Args:
      what: the problem, naming the file, slide, field or parameter.
      expected: what would have been right.
      found: what was there instead.
      fix: what to do about it.
      case: which of the class's known cases it is, such as ``D04``: an anchor of its page.
    """

    code = "SJ-000"
    case: str | None = None

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
        case: str | None = None,
    ) -> None:
        self.what, self.expected, self.found, self.fix = what, expected, found, fix
        if case is not None:
            self.case = case
        super().__init__(str(self))

    @property
    def reference(self) -> str:
        """Where the error is explained, from the package's repository: a page, and its case."""
        return f"docs/errors/{self.code}.md" + (f"#{self.case.lower()}" if self.case else "")

    def __str__(self) -> str:
        text = self.what.rstrip(".")
        if self.expected is not None:
            text += f": expected {self.expected}"
        if self.found is not None:
            text += (", " if self.expected is not None else ": ") + f"found {self.found}"
        text += "."
        if self.fix is not None:
            text += f" {self.fix}" if self.fix.endswith("?") else f" {self.fix.rstrip('.')}."
        return text


class SlideError(StemjaxError):
    """A slide's counts, coordinates or metadata cannot be used."""

    code = "SJ-D01"


class ImageError(StemjaxError):
    """A slide's image is missing, unreadable or does not cover the spots."""

    code = "SJ-D02"


class PixelSizeError(StemjaxError):
    """The pixel size (um/px) is unknown or contradictory."""

    code, case = "SJ-D03", "D14"


class GenePanelError(StemjaxError):
    """A gene list or panel does not fit the data or the model."""

    code = "SJ-D04"


class EncoderMismatchError(StemjaxError):
    """Embeddings come from another encoder, geometry or pooling than is wanted."""

    code = "SJ-D05"


class RecordsError(StemjaxError):
    """A record directory is missing, incomplete, damaged or of another panel."""

    code = "SJ-D06"


class SplitError(StemjaxError):
    """Slides held out, slides known and slides asked for do not go together."""

    code = "SJ-D07"


class SlidesFailedError(StemjaxError):
    """Some of the slides asked for failed, in preparing or predicting; the others are done.

    Args:
      what: how many failed.
      failed: what went wrong, by slide; the message lists the first 20.
      written: the slides that are done.
      fix: what to do about it.
    """

    code = "SJ-D08"

    def __init__(
        self, what: str, *, failed: Mapping[str, str], written: Sequence[str], fix: str
    ) -> None:
        self.failed, self.written = dict(failed), tuple(written)
        super().__init__(what, fix=fix)

    def __str__(self) -> str:
        listed = [f"    {slide}: {why}" for slide, why in list(self.failed.items())[:_MOST_LISTED]]
        if (more := len(self.failed) - _MOST_LISTED) > 0:
            listed.append(f"    and {more} more")
        return "\n".join([super().__str__(), *listed])


class ConfigError(StemjaxError):
    """A configuration has an unknown key or a value that cannot work."""

    code = "SJ-C01"


class CheckpointError(StemjaxError):
    """A checkpoint is missing or damaged."""

    code = "SJ-K01"


class CheckpointMismatchError(StemjaxError):
    """A checkpoint or workdir belongs to another configuration, panel or encoder."""

    code = "SJ-K02"


class TorchFileError(StemjaxError):
    """A PyTorch file is damaged, not a plain checkpoint, or holds another network."""

    code = "SJ-X01"


class BundleError(StemjaxError):
    """A bundle is missing, incomplete or damaged."""

    code = "SJ-X02"


class HubError(StemjaxError):
    """The hub cannot be reached or refuses, or what it has is no bundle."""

    code = "SJ-X03"


class UnsafeFileError(StemjaxError):
    """A file asks for what no honest file needs: to run code, to write elsewhere, absurd memory."""

    code = "SJ-U01"


class ResourceError(StemjaxError):
    """The disk or the memory does not hold what is asked for."""

    code = "SJ-R01"


class WorkdirInUseError(StemjaxError):
    """Another live job trains in the workdir."""

    code = "SJ-T03"


class PeerLostError(StemjaxError):
    """A process of a run of several died, or does not answer any more."""

    code = "SJ-T04"


class DisagreementError(StemjaxError):
    """Processes that were started as one run would not do the same."""

    code = "SJ-T02"


class NonFiniteError(StemjaxError):
    """The loss or a gradient became NaN or infinite."""

    code = "SJ-T01"


class PredictionError(StemjaxError):
    """A prediction file cannot be evaluated against the truth given."""

    code = "SJ-E01"


class CalibrationError(StemjaxError):
    """Intervals cannot be calibrated on these spots, or a stored calibration cannot be used."""

    code = "SJ-E02"
