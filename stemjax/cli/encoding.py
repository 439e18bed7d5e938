"""Flags that say where embeddings come from: an encoder with its weights, or files made earlier."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from stemjax import errors

if TYPE_CHECKING:
    from stemjax.data import embeddings

    type Embeds = embeddings.Encoder | embeddings.Embedder

BUILT_IN = ("texture", "none")


def add_flags(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Adds the flags of the encoder and of embedding files; `make` and `make_for` read them.

    Args:
      parser: of the command.
      default: the encoder where none is given, in words.
    """
    add_encoder(parser, default=default)
    parser.add_argument(
        "--same-encoder",
        action="store_true",
        help="take the embeddings for the model's though they name another tool or revision of the "
        "weights; everything else has to agree",
    )
    group = parser.add_argument_group("embeddings made earlier", "by this or another tool")
    group.add_argument(
        "--embeddings",
        metavar="PATH",
        help="file, folder or path with {slide} in it, of TRIDENT, HEST-bench, LazySlide, CLAM, "
        "Stem, AnnData, npz or stemjax: read in place of patches, joined by barcode or position",
    )
    group.add_argument(
        "--embeddings-key",
        metavar="NAME",
        help="of a file with several: obsm['X_uni'], or the table of a zarr store",
    )
    group.add_argument(
        "--rows-as-slide",
        action="store_true",
        help="of files that name neither barcodes nor positions: their rows are the slide's spots",
    )
    group.add_argument(
        "--coords",
        choices=("corner", "centre"),
        help="what positions in the files are, where they do not say it (default: the layout's)",
    )
    group.add_argument(
        "--allow-fov-mismatch",
        action="store_true",
        help="take slides whose patches differ from the others' by more than 5 %%",
    )
    group.add_argument(
        "--drop-missing",
        action="store_true",
        help="leave out spots that have no embedding (default: an error that names them)",
    )


def add_encoder(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Adds the flags of an encoder."""
    group = parser.add_argument_group("encoder", "turns patches into embeddings")
    group.add_argument(
        "--encoder",
        metavar="NAME",
        help="texture (built in), none, or any of `stemjax encode --list`, under the name that "
        f"TRIDENT, LazySlide, HEST-bench or the hub gives it (default: {default})",
    )
    group.add_argument(
        "--encoder-weights",
        type=pathlib.Path,
        metavar="FILE",
        help="of the encoder: safetensors or a torch file on this machine; nothing is downloaded",
    )
    group.add_argument(
        "--fov-um",
        type=_fov,
        metavar="UM|default|stem",
        help="side of a patch on the tissue; stem is max(224 px, spot diameter) "
        "(default: the model's, else the encoder's usual one)",
    )
    group.add_argument(
        "--pooling", metavar="NAME", help="of encoders with a choice: cls or cls+mean"
    )
    group.add_argument(
        "--projection", metavar="NAME", help="of encoders with one: CONCH's contrastive or none"
    )
    group.add_argument(
        "--encoder-dtype",
        choices=("bfloat16", "float32"),
        help="arithmetic of the encoder (default: bfloat16 on accelerators, float32 on a CPU)",
    )
    group.add_argument("--encoder-batch", type=int, metavar="N", help="patches on a device at once")


def _fov(text: str) -> float | str:
    if text in ("default", "stem"):
        return text
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected um above 0, default or stem, found {text!r}")
    return value


def needs_image(args: argparse.Namespace, name: str) -> bool:
    """Returns whether patches are read, so that slides need their images."""
    return name != "none" and not getattr(args, "embeddings", None)


def make(args: argparse.Namespace, default: str = "texture") -> Embeds:
    """Returns the encoder that the flags name, or the embeddings that they point at.

    Raises:
      ConfigError: no such encoder, or flags that do not go together.
      EncoderMismatchError: weights that are not the encoder's; embeddings of another.
    """
    if getattr(args, "embeddings", None):
        return _files(args)
    return _encoder(args, args.encoder or default, _given(args))


def make_for(args: argparse.Namespace, contract: embeddings.EncoderContract) -> Embeds:
    """Returns the encoder of a contract, with the weights that the flags name; else as `make`.

    Raises:
      EncoderMismatchError: the flags ask for something else than the contract.
    """
    if getattr(args, "embeddings", None):
        made = _files(args)
    else:
        fields = ("fov_um", "pooling", "projection")
        asked: dict[str, Any] = {field: getattr(contract, field) for field in fields}
        made = _encoder(args, args.encoder or contract.name, {**asked, **_given(args)})
    if getattr(args, "same_encoder", False):
        from stemjax.data import vouched

        return vouched.vouch(made, contract)
    made.contract.require_same(contract, where="the encoder and the model")
    return made


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of an encoder, as `encoders.make_encoder` takes it."""
    given: dict[str, Any] = {
        "pooling": args.pooling,
        "projection": args.projection,
        "dtype": args.encoder_dtype,
        "batch": args.encoder_batch,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if args.fov_um is not None:
        given["fov_um"] = None if args.fov_um == "stem" else args.fov_um
    return given


def _encoder(args: argparse.Namespace, name: str, options: dict[str, Any]) -> Embeds:
    from stemjax.data import embeddings

    if name in BUILT_IN:
        flags = ("encoder_weights", "fov_um", "pooling", "projection")
        flags += ("encoder_dtype", "encoder_batch")
        if wrong := [flag for flag in flags if getattr(args, flag, None) is not None]:
            raise errors.ConfigError(
                f"--{wrong[0].replace('_', '-')} with the encoder {name}",
                expected="an encoder with weights",
                fix="leave it out, or name an encoder of `stemjax encode --list`",
            )
        return embeddings.get_encoder(name)
    from stemjax import compilation, encoders

    compilation.enable_cache()
    return encoders.make_encoder(name, weights=args.encoder_weights, **options)


def _files(args: argparse.Namespace) -> embeddings.Embedder:
    from stemjax import encoders
    from stemjax.data import embedding_files

    if args.encoder_weights is not None:
        raise errors.ConfigError(
            "--embeddings and --encoder-weights",
            expected="one of them: embeddings made earlier need no weights",
        )
    if args.fov_um in ("default", "stem"):
        raise errors.ConfigError(
            f"--fov-um {args.fov_um} with --embeddings",
            expected="um, where the files do not say it",
            fix="leave it out: files say how large their patches are",
        )
    return embedding_files.open_embeddings(
        args.embeddings,
        encoder=args.encoder,
        known=encoders.known_contract,
        fov_um=args.fov_um,
        anchor=args.coords,
        allow_fov_mismatch=args.allow_fov_mismatch,
        key=args.embeddings_key,
        rows="as-slide" if args.rows_as_slide else None,
        missing="drop" if args.drop_missing else "error",
    )
