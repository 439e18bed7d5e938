"""The service in a process of its own: uvicorn until a signal says stop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn

from stemjax import errors
from stemjax.serving import app as apps
from stemjax.serving import menu as menus
from stemjax.serving import service as services
from stemjax.train import checkpoint

_SPARE_S = 5.0  # beyond a request's own time, before connections are cut at the end


def run(
    trained: checkpoint.Trained,
    menu: menus.Menu,
    limits: services.Limits,
    *,
    host: str,
    port: int,
    announce: Callable[[str, services.Service], None],
) -> None:
    """Serves until SIGTERM or SIGINT, and returns when what was accepted is answered.

    Args:
      trained: the model.
      menu: what is offered.
      limits: what it bears.
      host: address to listen on.
      port: port; 0 takes one that is free.
      announce: told the address once it listens, while programs are still being compiled.

    Raises:
      ConfigError: the address cannot be had.
    """

    def give_up() -> None:
        server.should_exit = True

    service = services.Service(trained, menu, limits, on_failed=give_up)
    config = uvicorn.Config(
        apps.make_app(service),
        log_config=None,  # plain lines on stderr, as Python logs what nobody set up
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(limits.timeout_s + _SPARE_S),
    )
    server = uvicorn.Server(config)
    with _listen(host, port) as listening:
        at = listening.getsockname()
        name = f"[{at[0]}]" if ":" in at[0] else at[0]
        announce(f"http://{name}:{at[1]}", service)
        # uvicorn raises the signal again when it has ended, which would kill the process.
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            server.run(sockets=[listening])
        finally:
            signal.signal(signal.SIGTERM, before)
    if service.failure is not None:
        raise service.failure


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port that is taken is said before the model is compiled."""
    try:
        if not 0 <= port < 2**16:
            raise OverflowError("no such port")
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise errors.ConfigError(
            f"--host {host} --port {port}",
            expected="an address of this machine and a free port",
            found=str(error),
            fix="name another",
        ) from error
