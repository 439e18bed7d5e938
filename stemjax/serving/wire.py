"""What goes over the wire: the request, the answer and the error, as pydantic models.

JSON knows no NaN and no infinity, and neither does this: a number that is none is refused on the
way in and is null on the way out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import ConfigDict, Discriminator, Field, FiniteFloat, StringConstraints, Tag

from stemjax import errors
from stemjax.data import embeddings as encoders
from stemjax.serving import refusals

MAX_SEED = 2**32 - 1
"""Largest seed: `jax.random.key` takes 32 bits of it."""

_EXPECTED = {"missing": "a value", "extra_forbidden": "no field of that name"}
_LONGEST = 80  # characters of what was found that an error repeats

type Mode = Literal["mean", "marginal", "pair", "draws", "intervals"]

type Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]

# The first wrong value ends the reading: a million of them would be a million messages.
type Vector = Annotated[list[FiniteFloat], pydantic.FailFast()]
type Vectors = Annotated[list[Vector], pydantic.FailFast(), Field(min_length=1)]


class Strict(pydantic.BaseModel):
    """A model that takes no unknown field and no number written as text."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Contract(Strict):
    """The encoder that made the embeddings: all fields of the model's encoder contract."""

    name: str
    width: int
    input_px: int
    fov_um: FiniteFloat | None
    resize: str
    mean: list[FiniteFloat]
    std: list[FiniteFloat]
    pooling: str
    projection: str
    source: str
    revision: str


class PackedEmbeddings(Strict):
    """Embeddings as bytes: a spot after the other, little-endian."""

    dtype: Literal["float16", "float32"]
    shape: Annotated[
        list[Annotated[int, Field(ge=1)]],
        Field(min_length=2, max_length=2, description="spots, width"),
    ]
    base64: Annotated[str, Field(description="the bytes in base64 (RFC 4648, section 4)")]

    def array(self) -> np.ndarray:
        """Returns the numbers, [n c].

        Raises:
          FieldError: the text is no base64, or holds another number of bytes.
        """
        import base64
        import binascii

        try:
            found = base64.b64decode(self.base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise refusals.FieldError(
                "embeddings.base64", expected="base64 with its padding", found=str(error)
            ) from error
        dtype = np.dtype(self.dtype).newbyteorder("<")
        wanted = self.shape[0] * self.shape[1] * dtype.itemsize
        if len(found) != wanted:
            raise refusals.FieldError(
                "embeddings.base64",
                expected=f"{wanted} bytes, shape {self.shape} of {self.dtype}",
                found=f"{len(found)}",
            )
        return np.frombuffer(found, dtype).reshape(self.shape)


# Without these a wrong value would be told of every form that it might have had.
def _form_of_encoder(given: Any) -> str:
    return "contract" if isinstance(given, dict | Contract) else "text"


def _form_of_embeddings(given: Any) -> str:
    return "bytes" if isinstance(given, dict | PackedEmbeddings) else "numbers"


class ProfilesRequest(Strict):
    """Some spots of one slide, and what is wanted of them."""

    encoder: Annotated[
        Annotated[str, Tag("text")] | Annotated[Contract, Tag("contract")],
        Discriminator(_form_of_encoder),
        Field(
            description="What made the embeddings: the encoder's name, the digest of its contract "
            "(both in /v1/model), or the contract itself. Another than the model's is refused."
        ),
    ]
    slide: Annotated[Name, Field(description="id of the slide; the noise depends on it")]
    barcodes: Annotated[
        list[Name],
        pydantic.FailFast(),
        Field(min_length=1, description="a name a spot, none twice; the noise depends on it"),
    ]
    embeddings: Annotated[
        Annotated[Vectors, Tag("numbers")] | Annotated[PackedEmbeddings, Tag("bytes")],
        Discriminator(_form_of_embeddings),
        Field(
            description="A row a spot, as numbers or as bytes. They are rounded to float16, as "
            "`stemjax prepare` stores them."
        ),
    ]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    mode: Annotated[
        Mode | None,
        Field(
            description="mean, marginal, pair, draws: as in `stemjax predict`; intervals: mean, "
            "spread and calibrated intervals. The first of those served by default."
        ),
    ] = None
    draws: Annotated[int | None, Field(ge=1, description="draws a spot, of mode draws")] = None
    steps: Annotated[int | None, Field(ge=1, description="steps of the sampler")] = None
    genes: Annotated[
        list[Name] | None,
        pydantic.FailFast(),
        Field(min_length=1, description="genes wanted, in this order; all by default"),
    ] = None
    encoding: Annotated[Literal["numbers", "base64"], Field(description="how arrays come back")] = (
        "numbers"
    )


class PackedArray(pydantic.BaseModel):
    """An array as bytes: little-endian float32, the last axis fastest; NaN where there is none."""

    dtype: Literal["float32"] = "float32"
    shape: list[int]
    base64: str


type Matrix = list[list[float | None]] | PackedArray
type Cube = list[list[list[float | None]]] | PackedArray


class Interval(pydantic.BaseModel):
    """A calibrated interval of each spot and gene; null for a gene without calibration."""

    level: Annotated[float, Field(description="share of measured values that it is to hold")]
    lower: Matrix
    upper: Matrix


class ModelIdentity(pydantic.BaseModel):
    """Which weights."""

    config: Annotated[str, Field(description="digest of the configuration")]
    step: int
    weights: str


class ProfilesResponse(pydantic.BaseModel):
    """Gene profiles, a row a spot in the request's order, in the value space."""

    model: ModelIdentity
    slide: str
    barcodes: list[str]
    genes: list[str]
    seed: int
    mode: str
    value_space: Annotated[str, Field(description="unit of all values, such as log2p1")]
    sampling: Annotated[dict[str, Any], Field(description="how it was drawn")]
    evaluations_per_spot: int
    mean: Annotated[Matrix, Field(description="[spot, gene]")]
    std: Annotated[Matrix | None, Field(description="[spot, gene]; of the draws or the model")]
    standard_error: Annotated[
        Matrix | None, Field(description="[spot, gene]; of the mean, where draws tell it")
    ]
    draws: Annotated[Cube | None, Field(description="[spot, draw, gene]; of mode draws")]
    intervals: Annotated[list[Interval] | None, Field(description="of mode intervals")]
    calibration: Annotated[
        dict[str, Any] | None, Field(description="where the intervals come from")
    ]
    notice: str


class ModelResponse(pydantic.BaseModel):
    """What a client has to know of the model."""

    model: ModelIdentity
    genes: Annotated[list[str], Field(description="the panel, in column order")]
    value_space: Annotated[str, Field(description="unit of all values, such as log2p1")]
    encoder: Annotated[Contract, Field(description="what the embeddings have to be")]
    encoder_digest: Annotated[str, Field(description="SHA-256 of the contract")]
    modes: Annotated[list[str], Field(description="the first by default")]
    samplings: Annotated[list[dict[str, Any]], Field(description="all that is compiled")]
    calibrations: Annotated[list[dict[str, Any]], Field(description="without their offsets")]
    train_slides: list[str]
    limits: dict[str, int | float]
    stemjax_version: str
    notice: str


class Health(pydantic.BaseModel):
    """Whether the service is alive, or ready."""

    status: Literal["ok"] = "ok"


class ErrorBody(pydantic.BaseModel):
    """What was wrong."""

    code: Annotated[str, Field(description="stable, such as SJ-S02")]
    what: str
    expected: str | None
    found: str | None
    fix: str | None


class ErrorResponse(pydantic.BaseModel):
    """The body of every answer that is an error."""

    error: ErrorBody


def read_request(body: bytes) -> ProfilesRequest:
    """Returns the request that a body is.

    Raises:
      NotJsonError: it is no JSON.
      FieldError: a field is missing, unknown or of another type.
    """
    try:
        return ProfilesRequest.model_validate_json(body)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise refusals.NotJsonError(
                "the body is not JSON", expected="one JSON object", found=first["msg"]
            ) from None
        expected = _EXPECTED.get(first["type"], first["msg"].removeprefix("Input should be "))
        raise refusals.FieldError(
            ".".join(str(part) for part in first["loc"]) or "the request",
            expected=expected,
            found="nothing" if first["type"] == "missing" else _shorten(first["input"]),
            fix="see /openapi.json",
        ) from None


def error_body(error: errors.StemjaxError) -> bytes:
    """Returns an error as JSON."""
    parts = ErrorBody(
        code=error.code,
        what=_plain(error.what) or "",
        expected=_plain(error.expected),
        found=_plain(error.found),
        fix=_plain(error.fix),
    )
    return ErrorResponse(error=parts).model_dump_json().encode()


def pack(array: np.ndarray, encoding: str) -> Any:
    """Returns an array for an answer: nested lists with null for NaN, or a `PackedArray`."""
    import base64

    array = np.ascontiguousarray(array, np.dtype("<f4"))
    if encoding == "base64":
        text = base64.b64encode(array.tobytes()).decode("ascii")
        return PackedArray(shape=list(array.shape), base64=text)
    finite = np.isfinite(array)
    if finite.all():
        return array.tolist()
    found = array.astype(object)
    found[~finite] = None
    return found.tolist()


def contract_of(found: Contract) -> encoders.EncoderContract:
    """Returns the contract that a request states, for comparing.

    Raises:
      EncoderMismatchError: it is no contract.
    """
    return encoders.EncoderContract.from_json(found.model_dump())


def _shorten(value: Any) -> str:
    """A value in few characters; of a large one only its beginning is looked at."""
    if isinstance(value, str | bytes):
        value = value[:_LONGEST]
    elif isinstance(value, list):
        return f"a list of {len(value)}"
    elif isinstance(value, dict):
        return f"an object with {len(value)} fields"
    text = repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _plain(text: str | None) -> str | None:
    """Text that UTF-8 can hold: a header's bytes may be anything."""
    return None if text is None else text.encode("utf-8", "replace").decode()
