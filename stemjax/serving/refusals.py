"""What the service says no to, each with its code and HTTP status."""

from __future__ import annotations

from stemjax import errors


class Refusal(errors.StemjaxError):
    """A request that is not answered with profiles.

    Args:
      what: the problem.
      expected: what would have been right.
      found: what was there instead.
      fix: what to do about it.
      status: HTTP status, where it is another than the class's.
      headers: HTTP headers that belong to the status.
    """

    code, status = "SJ-S00", 500

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
        status: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(what, expected=expected, found=found, fix=fix)
        self.status, self.headers = status or type(self).status, headers or {}


class NotJsonError(Refusal):
    """The body is not JSON."""

    code, status = "SJ-S01", 400


class FieldError(Refusal):
    """A field of the request is missing, unknown or cannot be right."""

    code, status = "SJ-S02", 422


class TooLargeError(Refusal):
    """The body has too many bytes, or the request too many spots."""

    code, status = "SJ-S03", 413


class MediaTypeError(Refusal):
    """The body says that it is something else than JSON."""

    code, status = "SJ-S04", 415


class NotServedError(Refusal):
    """There is no such path, or the path does not take this method."""

    code, status = "SJ-S05", 404


class BusyError(Refusal):
    """The queue is full, or the service is not ready yet, or it is about to stop."""

    code, status = "SJ-S06", 503


class LateError(Refusal):
    """The time for a request was over: 504 before its answer, 408 before its body."""

    code, status = "SJ-S07", 504


class FailedError(Refusal):
    """The service failed, and the request was not to blame."""

    code, status = "SJ-S08", 500


def status_of(error: errors.StemjaxError) -> int:
    """Returns the HTTP status of an error: of those of the package 409 or 422."""
    if isinstance(error, Refusal):
        return error.status
    return 409 if isinstance(error, errors.EncoderMismatchError) else 422


def headers_of(error: errors.StemjaxError) -> dict[str, str]:
    """Returns the HTTP headers that go with an error."""
    return error.headers if isinstance(error, Refusal) else {}
