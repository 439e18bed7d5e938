"""``stemjax serve``: a model behind HTTP."""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stemjax import errors, names
from stemjax.cli import options

if TYPE_CHECKING:
    from stemjax.serving import service

_NEEDED = ("fastapi", "prometheus_client", "pydantic", "uvicorn")


def add(commands: options.Commands) -> None:
    """Adds the sub-command ``serve``."""
    parser = commands.add_parser(
        "serve", help="answer HTTP requests: embeddings in, gene profiles out"
    )
    parser.add_argument(
        "model", type=pathlib.Path, metavar="MODEL", help="workdir of a run, or a bundle"
    )
    options.add_weights(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on. Whoever reaches it is served: put a proxy with authentication "
        "in front before it is another than this machine's own (default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)"
    )
    _add_offer(parser)
    _add_limits(parser)
    parser.set_defaults(run=_run)


def _add_offer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what is offered",
        "compiled at the start; requests choose among it. Calibrated ways of sampling come along",
    )
    group.add_argument(
        "--modes",
        default="",
        metavar="MODES",
        help="comma-separated, the default first (default: mean, marginal and draws, as far as the "
        "model has them)",
    )
    group.add_argument(
        "--n-draws",
        default="",
        metavar="NUMBERS",
        help="draws a spot, comma-separated, the default first; a request may ask for fewer "
        "(default: 20)",
    )
    group.add_argument(
        "--steps",
        default="",
        metavar="NUMBERS",
        help="noise levels, comma-separated, the default first (default: 8; 1 of a consistency "
        "model)",
    )
    group.add_argument(
        "--independent",
        dest="antithetic",
        action="store_const",
        const=False,
        help="draw without antithetic pairs",
    )
    group.add_argument("--sampler", choices=names.SAMPLERS, help="step rule (default: dpmpp2m)")
    group.add_argument(
        "--ladder", choices=names.LADDERS, help="spacing of the noise levels (default: karras)"
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    for flag, kind, unit, text in (
        ("--max-batch", int, "SPOTS", "computed at a time (default: 256)"),
        ("--max-wait-ms", float, "MS", "that a batch waits for company (default: 2)"),
        ("--max-spots", int, "SPOTS", "in a request (default: 1024)"),
        ("--max-body-bytes", int, "BYTES", "of a request (default: 33554432)"),
        ("--timeout-s", float, "S", "for a request, all together (default: 60)"),
        ("--queue", int, "REQUESTS", "that may wait (default: 64)"),
    ):
        group.add_argument(flag, type=kind, metavar=unit, help=text)


def _require_extra() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.ConfigError(
            f"stemjax serve needs the packages {', '.join(missing)}",
            fix="pip install 'stemjax[serve]'",
        )


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, names.split_names(text)))
    except ValueError as error:
        raise errors.ConfigError(
            flag, expected="whole numbers, comma-separated", found=text
        ) from error


def _run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    _require_extra()
    n_draws, steps = _numbers("--n-draws", args.n_draws), _numbers("--steps", args.steps)
    from stemjax.export import bundle
    from stemjax.serving import menu, server, service

    bounds = ("max_batch", "max_wait_ms", "max_spots", "max_body_bytes", "timeout_s", "queue")
    given = {name: getattr(args, name) for name in bounds}
    limits = service.Limits(**{name: value for name, value in given.items() if value is not None})
    sampling = {name: getattr(args, name) for name in ("antithetic", "sampler", "ladder")}
    trained = bundle.open_model(args.model, weights=args.weights)
    made = menu.make_menu(
        trained,
        modes=names.split_names(args.modes),
        n_draws=n_draws,
        steps=steps,
        more={name: value for name, value in sampling.items() if value is not None},
    )

    def announce(address: str, serving: service.Service) -> None:
        card = trained.card
        print(  # noqa: T201
            f"{address}: {len(card.space.genes)} genes from {card.contract.name} (width "
            f"{card.contract.width}), modes {', '.join(made.modes)}; {address}/readyz tells when "
            f"its {len(made.compiled)} ways of sampling are compiled",
            flush=True,
        )

    server.run(trained, made, limits, host=args.host, port=args.port, announce=announce)
    print("stopped")  # noqa: T201
