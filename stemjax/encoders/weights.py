"""Weights of a published encoder from a file on this machine: every tensor accounted for.

Read without torch and without running anything: `stemjax.foreign.torchfile` for files of torch,
`stemjax.foreign.safetensors_file` for the others. One tensor at a time is in memory besides the
parameters themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from stemjax import errors
from stemjax.data import integrity
from stemjax.encoders import names as names_lib
from stemjax.foreign import json_text, safetensors_file, torchfile
from stemjax.models.vit import grids, network
from stemjax.models.vit.spec import ViTSpec
from stemjax.typing import Params

INDEX = "model.safetensors.index.json"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_NESTED = ("state_dict", "model", "teacher", "model_state_dict")


class Tensor(Protocol):
    """A tensor whose numbers are still in its file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """One length per dimension."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of the elements."""
        ...

    def numpy(self) -> np.ndarray:
        """Reads them."""
        ...


def files(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that hold the weights: one, or those that a folder's index names.

    Raises:
      CheckpointError: there are none, or the index cannot be read.
    """
    if path.is_file():
        return [path]
    if (path / INDEX).is_file():
        return _sharded(path)
    for name in _WHOLE:
        if (path / name).is_file():
            return [path / name]
    raise errors.CheckpointError(
        f"{path}: weights of an encoder",
        expected=f"a file, or a folder with {INDEX}, {' or '.join(_WHOLE)}",
        found="none of them" if path.is_dir() else "no such file",
    )


def digests(path: pathlib.Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of the weights, by its name."""
    return {file.name: integrity.sha256(file) for file in files(path)}


def revision(hashes: Mapping[str, str]) -> str:
    """Returns a short name of the weights: other numbers have another.

    Args:
      hashes: of the files, `digests`. That of one file does not depend on the file's name.
    """
    found = next(iter(hashes.values()))
    if len(hashes) > 1:
        listed = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
        found = hashlib.sha256(listed.encode()).hexdigest()
    return f"sha256:{found[:16]}"


def load(path: pathlib.Path, spec: ViTSpec, *, naming: str, dtype: DTypeLike) -> Params:
    """Returns the parameters of the network, on the host.

    Args:
      path: file or folder, see `files`.
      spec: of the network.
      naming: whose names the tensors bear, one of `names.NAMINGS`.
      dtype: of the matrices; vectors and embeddings stay float32. Position embeddings of another
        image size are interpolated.

    Raises:
      CheckpointError, TorchFileError: the file is missing, damaged or of another format.
      EncoderMismatchError: it holds another network: names the tensor, what was expected and found.
    """
    tensors = read(path)
    where = str(path)
    wanted = parameter_shapes(spec)
    origins = names_lib.table(naming, spec, wanted)
    prefix = names_lib.find_prefix(naming, tensors, where)
    names_lib.require_no_others(origins, spec.depth, tensors, prefix, where)
    source = _Source(tensors, prefix, where)
    found: Params = {}
    plan = [(name, shape, origins[name]) for name, shape in wanted.items()]
    for name, shape, origin in plan:  # all of them are there and fit, before numbers are read
        source.require(name, shape, origin, spec)
    for name, shape, origin in plan:
        kind = np.dtype(jnp.dtype(dtype)) if name.endswith("kernel") else np.dtype(np.float32)
        *parts, last = name.split("/")
        place = found
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = source.take(name, shape, origin, spec, kind)
    return found


def parameter_shapes(spec: ViTSpec) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter by its path; nothing is allocated."""
    tree = jax.eval_shape(network.make_vit(spec).init, jax.random.key(0))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def read(path: pathlib.Path) -> dict[str, Tensor]:
    """Returns the tensors of the weights by name.

    Raises:
      CheckpointError, TorchFileError: a file is missing, damaged or of another format.
      EncoderMismatchError: a torch file holds no dict of tensors.
    """
    found: dict[str, Tensor] = {}
    for file in files(path):
        with file.open("rb") as handle:
            is_zip = handle.read(2) == b"PK"
        is_torch = is_zip or file.suffix not in ("", ".safetensors")
        tensors: Mapping[str, Tensor]
        tensors = _tensors(torchfile.read(file), file) if is_torch else safetensors_file.read(file)
        if twice := found.keys() & tensors.keys():
            raise errors.CheckpointError(
                f"{path}: tensor {sorted(twice)[0]}", expected="in one file", found="in several"
            )
        found |= tensors
    return found


@dataclasses.dataclass(frozen=True)
class _Source:
    """The tensors of a checkpoint under the names of a table."""

    tensors: Mapping[str, Tensor]
    prefix: str
    where: str

    def require(
        self, name: str, shape: tuple[int, ...], origin: names_lib.Origin, spec: ViTSpec
    ) -> None:
        """Nothing, or an error that names the tensor that is missing or does not fit."""
        blocks = spec.depth if name.startswith("blocks/") else None
        expected = origin.shape(shape[1:] if blocks else shape)
        for i in range(blocks or 1):
            for one in origin.names:
                full = self.prefix + one.format(i=i)
                tensor = self.tensors.get(full)
                if tensor is None:
                    raise self._misfit(full, f"shape {expected}", "no such tensor")
                found = _squeezed(tensor.shape, len(expected))
                fits = found == expected or (
                    name == "position" and _is_square(found, expected, spec.positioned)
                )
                if not fits:
                    raise self._misfit(full, f"shape {expected}", f"shape {tensor.shape}")
                if not jnp.issubdtype(tensor.dtype, jnp.floating):
                    raise self._misfit(full, "floating-point numbers", str(tensor.dtype))

    def take(
        self,
        name: str,
        shape: tuple[int, ...],
        origin: names_lib.Origin,
        spec: ViTSpec,
        kind: np.dtype,
    ) -> np.ndarray:
        """The parameter."""
        if name == "position":
            array = grids.resize(
                self._one(origin, 0).astype(np.float32),
                prefix=spec.positioned,
                grid=spec.grid,
                antialias=spec.antialias,
            )
            return array.astype(kind, copy=False)
        if not name.startswith("blocks/"):
            return self._one(origin, 0).astype(kind).reshape(shape)
        out = np.empty(shape, kind)
        for i in range(spec.depth):
            out[i] = self._one(origin, i).reshape(shape[1:])
        return out

    def _one(self, origin: names_lib.Origin, i: int) -> np.ndarray:
        """A parameter outside the blocks, or that of block ``i``."""
        parts = [self.tensors[self.prefix + name.format(i=i)].numpy() for name in origin.names]
        kept = {"flat": 1, "rows": 2}.get(origin.form)
        if kept is not None:
            parts = [part.reshape(_squeezed(part.shape, kept)) for part in parts]
        return origin.arrange(parts)

    def _misfit(self, tensor: str, expected: str, found: str) -> errors.EncoderMismatchError:
        return errors.EncoderMismatchError(
            f"{self.where}: tensor {ascii(tensor)[:120]}",
            expected=expected,
            found=found,
            fix="Give the weights of this encoder",
        )


def _squeezed(shape: tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    """A shape without leading ones that it has too many of."""
    extra = len(shape) - dimensions
    return shape[extra:] if extra > 0 and set(shape[:extra]) == {1} else shape


def _is_square(found: tuple[int, ...], expected: tuple[int, ...], prefix: int) -> bool:
    """Whether position embeddings are those of another, square grid of patches."""
    if len(found) != 2 or found[1] != expected[1] or found[0] <= prefix:
        return False
    return math.isqrt(found[0] - prefix) ** 2 == found[0] - prefix


def _sharded(folder: pathlib.Path) -> list[pathlib.Path]:
    index = folder / INDEX
    try:
        listed = json_text.parse(index.read_text(encoding="utf-8"))["weight_map"].values()
        found = sorted(set(listed))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise errors.CheckpointError(
            f"{index} cannot be read ({type(error).__name__})", fix="Download it again"
        ) from error
    for name in found:
        inside = isinstance(name, str) and pathlib.PurePath(name).name == name
        if not inside or not (folder / name).is_file():
            raise errors.CheckpointError(
                f"{index}", expected="files beside it", found=ascii(name)[:120],
                fix="Download the missing files",
            )  # fmt: skip
    if not found:
        raise errors.CheckpointError(f"{index}", expected="files of tensors", found="none")
    return [folder / name for name in found]


def _tensors(tree: Any, path: pathlib.Path) -> Mapping[str, Tensor]:
    """The tensors of a torch file: those of the dict itself, or of the one that it wraps."""
    while isinstance(tree, dict):
        found = {
            name: value
            for name, value in tree.items()
            if isinstance(name, str) and isinstance(value, torchfile.Tensor)
        }
        if found:
            return found
        tree = next((tree[name] for name in _NESTED if isinstance(tree.get(name), dict)), None)
    raise errors.EncoderMismatchError(
        f"{path}: weights of an encoder",
        expected=f"a dict of tensors, or one under {', '.join(_NESTED)}",
        found="none",
        fix="In torch: torch.save(model.state_dict(), NEW)",
    )
