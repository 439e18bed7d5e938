"""The space that the model works in, and the way back to counts.

    counts --transform--> value space (such as log2(count + 1)) --standardise--> model space
    embedding, float16 ------------------------------------------ standardise--> condition

Both standardisations are fitted on training rows and travel with the model: numbers of another
space mean nothing to its weights. All maths here is float32 numpy, element by element, so a row is
encoded to the same bits alone, in a batch or with the whole table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from stemjax import errors
from stemjax import typing as st
from stemjax.data import records as records_lib
from stemjax.data import transforms

type Share = Callable[[list[np.ndarray]], list[np.ndarray]]
type Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Rows encoded at once: bounds the float64 temporaries of a fit and of a transform.
_CHUNK = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """Transform and standardisation of expression, standardisation of the condition.

    Attributes:
      genes: the genes, in column order.
      transform: name of the transform, which names the value space too.
      expression: mean and standard deviation of each gene in the value space, [g].
      condition: mean and standard deviation of each embedding feature, [c].
    """

    genes: tuple[str, ...]
    transform: str
    expression: transforms.Standardisation
    condition: transforms.Standardisation

    def __post_init__(self) -> None:
        transforms.get_transform(self.transform)
        if len(self.expression.mean) != len(self.genes):
            raise errors.GenePanelError(
                "The standardisation of expression does not fit the genes",
                expected=f"{len(self.genes)} genes",
                found=f"{len(self.expression.mean)}",
                fix="Fit the space on records of this panel",
            )

    def forward(self, counts: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Counts to value space, [n g] float32: the truth that predictions are scored against."""
        return transforms.get_transform(self.transform).forward(counts, total)

    def encode_expression(
        self, counts: np.ndarray, total: np.ndarray, mask: np.ndarray
    ) -> np.ndarray:
        """Expression in model space, [n g] float32; 0, the training mean, where not measured.

        Args:
          counts: raw counts, [n g].
          total: raw counts of the spot over all genes, [n].
          mask: 1 where measured, [n g].
        """
        out = np.empty(counts.shape, np.float32)
        for rows in _chunks(len(counts)):
            x = self.expression.apply(self.forward(counts[rows], total[rows]))
            out[rows] = np.where(mask[rows] != 0, x, np.float32(0))
        return out

    def expression_blocks(
        self, tables: Iterable[records_lib.Table]
    ) -> Iterator[Float[np.ndarray, "n g"]]:
        """`encode_expression` of the tables' rows, some thousands at a time."""
        for table in tables:
            for rows in _chunks(table.n):
                yield self.encode_expression(
                    table.counts[rows], table.total[rows], table.mask[rows]
                )

    def encode_condition(self, embeddings: np.ndarray) -> np.ndarray:
        """Standardised embeddings of one variant a row, [n c] float32."""
        return self.condition.apply(embeddings.astype(np.float32))

    def batch(self, table: records_lib.Table, variants: np.ndarray) -> st.Batch:
        """A batch of all rows of `table`.

        Args:
          table: the rows.
          variants: which embedding variant each row shows, [n] integer.
        """
        return st.Batch(
            cond=self.encode_condition(table.embeddings[np.arange(table.n), variants]),
            x0=self.encode_expression(table.counts, table.total, table.mask),
            mask=table.mask.astype(np.float32),
        )

    def values(self, x: np.ndarray) -> np.ndarray:
        """Model space to value space, [... g] float32: what predictions are written in."""
        return self.expression.invert(np.asarray(x, np.float32))

    def counts(self, x: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Model space to counts, [n g] float32.

        Args:
          x: expression in model space, [n g].
          total: counts of the spot over all genes, which log1p(CP10k) scales by, [n].
        """
        return transforms.get_transform(self.transform).inverse(self.values(x), total)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back."""
        return {
            "genes": list(self.genes),
            "transform": self.transform,
            "expression": self.expression.to_json(),
            "condition": self.condition.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Space:
        """The space that `to_json` wrote, equal to the last bit.

        Raises:
          RecordsError, GenePanelError, ConfigError: a part is missing, or cannot be.
        """
        try:
            genes, transform = values["genes"], values["transform"]
            if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
                raise TypeError("genes that are no list of names")
            expression, condition = values["expression"], values["condition"]
        except (KeyError, TypeError) as error:
            raise errors.RecordsError(
                "a stored space is incomplete",
                expected="genes, transform, expression and condition",
                found=f"{type(error).__name__}: {error}",
            ) from error
        return cls(
            genes=tuple(genes),
            transform=transform,
            expression=transforms.Standardisation.from_json(expression),
            condition=transforms.Standardisation.from_json(condition),
        )

    @classmethod
    def fit(
        cls,
        tables: records_lib.Table | Iterable[records_lib.Table],
        *,
        genes: tuple[str, ...],
        transform: str,
        standardise_expression: bool = True,
        standardise_condition: bool = True,
        share: Share | None = None,
    ) -> Space:
        """The space of some training rows.

        The condition is fitted on variant 0, the original patch: it is what predictions are made
        from, the other variants show the same tissue turned, and so the space does not depend on
        whether training uses them.

        Args:
          tables: the training rows, as one table or as several that are read one after another
            (a slide at a time where all would not fit in RAM).
          genes: the genes of the tables' columns.
          transform: name of the transform.
          standardise_expression: False leaves the value space as it is, as Stem publishes it.
          standardise_condition: False leaves the embeddings as they are.
          share: where ``tables`` are some of several, makes the moments of all of them, in order,
            from those of these. The space then is the same to the last bit.

        Raises:
          ConfigError: the transform is unknown.
          RecordsError: there are no rows.
        """
        forward = transforms.get_transform(transform).forward
        given = (tables,) if isinstance(tables, records_lib.Table) else tables
        # Each table by itself, whoever reads it, so that it does not matter who does.
        parts = [_moments(table, forward) for table in given]
        expression, condition = transforms.Moments(), transforms.Moments()
        for part in parts if share is None else share(parts):
            expression.merge(transforms.Moments.from_array(part[:, : len(genes)]))
            condition.merge(transforms.Moments.from_array(part[:, len(genes) :]))
        return cls(
            genes=genes,
            transform=transform,
            expression=_standardisation(expression, fitted=standardise_expression),
            condition=_standardisation(condition, fitted=standardise_condition),
        )


def _moments(table: records_lib.Table, forward: Forward) -> Float[np.ndarray, "3 w"]:
    """The moments of a table's expression and, beside them, of its condition (`to_array`)."""
    expression, condition = transforms.Moments(), transforms.Moments()
    for rows in _chunks(table.n):
        expression.add(forward(table.counts[rows], table.total[rows]), table.mask[rows])
        condition.add(table.embeddings[rows, 0])
    return np.concatenate([expression.to_array(), condition.to_array()], axis=1)


def _standardisation(moments: transforms.Moments, *, fitted: bool) -> transforms.Standardisation:
    if not moments.width:
        raise errors.RecordsError(
            "There are no training rows to fit the model's space on",
            fix="check that the training slides have spots",
        )
    if fitted:
        return moments.standardisation()
    zero = np.zeros(moments.width, np.float32)
    return transforms.Standardisation(mean=zero, std=zero + 1)


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, n, _CHUNK))
