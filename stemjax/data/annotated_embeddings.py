"""Embeddings that AnnData objects hold, with what they are: ``obsm`` and ``uns``.

obsm["X_uni"]             [l c], the original patch
obsm["X_uni_variants"]    [l v c], where flips and turns were embedded too
uns["stemjax_encoders"]   contract of each key, as JSON
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from stemjax import errors
from stemjax.data import embeddings, slides
from stemjax.foreign import json_text

if TYPE_CHECKING:
    import anndata

CONTRACTS = "stemjax_encoders"
VARIANTS = "_variants"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """Embeddings that AnnData objects hold: an `embeddings.Embedder`.

    Attributes:
      contract: of all of them.
      arrays: [l v c] and barcodes by slide.
      variants: the fewest that a slide has.
    """

    contract: embeddings.EncoderContract
    arrays: Mapping[str, tuple[np.ndarray, tuple[str, ...]]]
    variants: int

    def embed(
        self,
        slide: slides.Slide,
        *,
        variants: int = 8,
        workers: int = 1,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> np.ndarray:
        """Returns the slide's embeddings, joined by barcode, [l v c]."""
        found, barcodes = self.arrays[slide.id]
        place = {barcode: row for row, barcode in enumerate(barcodes)}
        return found[[place[barcode] for barcode in slide.barcodes], :variants]

    def covered(self, slide: slides.Slide) -> slides.Slide:
        """The slide with the hash of its embeddings as a source, which tells records apart."""
        values = np.ascontiguousarray(self.arrays[slide.id][0])
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        return dataclasses.replace(slide, sources={**slide.sources, "embeddings": digest})


def embedder_of(named: Mapping[str, anndata.AnnData], key: str | None) -> Given:
    """Returns the embeddings of slides, all of one contract.

    Args:
      named: the slides.
      key: of ``obsm``; None is the only one with a contract.

    Raises:
      EncoderMismatchError: there is none, more than one, or slides differ.
    """
    arrays, first = {}, None
    for name, data in named.items():
        used, contract = contract_of(data, key, name)
        if first is None:
            first = contract
        contract.require_same(first, where=f"slide {name} and the first one")
        values = np.asarray(data.obsm.get(used + VARIANTS, data.obsm[used]))
        values = values[:, None] if values.ndim == 2 else values
        with np.errstate(over="ignore"):  # what overflows is named by patches.embed_slide
            arrays[name] = values.astype(np.float16), tuple(map(str, data.obs_names))
    if first is None:
        raise errors.SlideError("There are no slides", expected="at least one AnnData")
    fewest = min(values.shape[1] for values, _ in arrays.values())
    return Given(contract=first, arrays=arrays, variants=fewest)


def contract_of(
    data: anndata.AnnData, key: str | None, name: str
) -> tuple[str, embeddings.EncoderContract]:
    """Returns the key of a slide's embeddings, and their contract.

    Raises:
      EncoderMismatchError: there are none, or it must be said which.
    """
    known = dict(data.uns.get(CONTRACTS, {}))
    there = [one for one in known if one in data.obsm]
    if key is None and len(there) == 1:
        key = there[0]
    if key is None or key not in known or key not in data.obsm:
        asked = "one embedding made by stemjax.pp.encode" if key is None else f"obsm[{key!r}]"
        raise errors.EncoderMismatchError(
            f"the embeddings of slide {name}",
            expected=f"{asked}, and its contract in uns[{CONTRACTS!r}]",
            found=", ".join(there) or "none",
            fix="say which: embedding="
            if len(there) > 1
            else "run stemjax.pp.encode, or stemjax.pp.declare for embeddings of another tool",
        )
    return key, _contract(known[key])


def _contract(text: str) -> embeddings.EncoderContract:
    try:
        return embeddings.EncoderContract.from_json(json_text.parse(text))
    except (ValueError, TypeError) as error:
        raise errors.EncoderMismatchError(
            f"uns[{CONTRACTS!r}] holds no contract",
            expected="a contract as JSON, as stemjax.pp.encode writes it",
            found=f"{type(error).__name__}: {str(error)[:120]}",
        ) from error


def fitting(data: anndata.AnnData, contract: embeddings.EncoderContract) -> str | None:
    """Returns the first key of embeddings of a contract; None where there is none."""
    for key, text in dict(data.uns.get(CONTRACTS, {})).items():
        if key not in data.obsm:
            continue
        try:
            _contract(text).require_same(contract, where="")
        except errors.EncoderMismatchError:
            continue
        return key
    return None
