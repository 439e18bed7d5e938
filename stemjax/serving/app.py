"""The HTTP side of the service: paths, status codes, limits of the body, OpenAPI."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import fastapi
import numpy as np
import pydantic
import starlette.exceptions
import starlette.requests
from fastapi import Request, Response
from fastapi.openapi import utils as openapi
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stemjax import __version__, errors
from stemjax.serving import meters, refusals, wire
from stemjax.serving import service as services

PROFILES, MODEL, HEALTH, READY = "/v1/profiles", "/v1/model", "/healthz", "/readyz"
METRICS, OPENAPI = "/metrics", "/openapi.json"
PATHS = (PROFILES, MODEL, HEALTH, READY, METRICS, OPENAPI)

_JSON = "application/json"
_NUMBERS_UP_TO = 32  # features of an embedding that an example writes out
_ERRORS = {
    400: "the body is no JSON, or ended early",
    408: "the body took too long",
    409: "embeddings of another encoder than the model's",
    413: "too many bytes or spots",
    415: "the body is said to be something else than JSON",
    422: "a field cannot be right",
    500: "the service failed",
    503: "the queue is full, or the service is starting or stopping",
    504: "the request was accepted and took too long",
}
_WAIT = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}}


def make_app(service: services.Service) -> fastapi.FastAPI:
    """Returns the ASGI application; its lifespan starts and stops the service."""

    @contextlib.asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = fastapi.FastAPI(
        title="stemjax serve",
        version=__version__,
        summary="Gene profiles of spots from the embeddings of their H&E patches",
        description=services.NOTICE,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(_Counted, count=service.meters.count_request)
    _add_errors(app)
    _add_paths(app, service)
    made = _schema(app, service)
    app.openapi = lambda: made
    return app


def _add_paths(app: fastapi.FastAPI, service: services.Service) -> None:
    @app.post(PROFILES, response_model=wire.ProfilesResponse, responses=_responses(*_ERRORS))
    async def profiles(request: Request) -> Response:
        """Predicts the gene profiles of some spots of a slide."""
        return await _profiles(service, request)

    @app.get(MODEL, response_model=wire.ModelResponse, responses=_responses(500))
    async def model() -> Response:
        """Tells genes, encoder contract, ways of sampling and limits."""
        return _json(service.describe())

    @app.get(HEALTH, response_model=wire.Health, responses=_responses(500))
    async def healthz() -> Response:
        """Tells that the process is alive."""
        return _json(wire.Health())

    @app.get(READY, response_model=wire.Health, responses=_responses(500, 503))
    async def readyz() -> Response:
        """Tells whether every program is compiled and requests are accepted."""
        if not service.ready:
            raise refusals.BusyError(
                "the service is not ready",
                found="it compiles, or is about to stop",
                fix="ask again in 5 s",
                headers={"Retry-After": "5"},
            )
        return _json(wire.Health())

    about = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get(METRICS, response_class=Response, responses={**about, **_responses(500)})
    async def metrics() -> Response:
        """Counts, for Prometheus."""
        return Response(service.meters.text(), media_type=meters.CONTENT_TYPE)


async def _profiles(service: services.Service, http: Request) -> Response:
    """The answer to one request, or an error."""
    limits, began = service.limits, time.monotonic()
    _require_json(http)
    try:
        async with asyncio.timeout(limits.timeout_s):
            body = await _read(http, limits.max_body_bytes)
    except TimeoutError:
        raise refusals.LateError(
            "the body did not arrive", expected=f"all of it within {limits.timeout_s:g} s",
            status=408, fix="send it faster, or less of it",
        ) from None  # fmt: skip
    request = wire.read_request(body)
    job = service.admit(request)
    left = limits.timeout_s - (time.monotonic() - began)
    try:
        found = await asyncio.wait_for(asyncio.wrap_future(job.future), left)
    except TimeoutError:
        job.abandoned = True
        raise refusals.LateError(
            "the profiles were not ready in time", expected=f"within {limits.timeout_s:g} s",
            fix="send fewer spots a request, or try when there are fewer requests",
        ) from None  # fmt: skip
    except errors.StemjaxError:
        raise
    except Exception as error:
        # The batch's thread has logged it, with the others of the batch.
        raise refusals.FailedError(
            "the service failed at computing the profiles", found=type(error).__name__,
            fix="look at the server's log",
        ) from error  # fmt: skip
    # Large ones take a while to write, and others are to be heard meanwhile.
    return await asyncio.to_thread(lambda: _json(service.answer(request, job, found)))


def _require_json(http: Request) -> None:
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    coding = http.headers.get("content-encoding", "identity").strip().lower()
    if kind != _JSON or coding != "identity":
        raise refusals.MediaTypeError(
            "the body's type", expected=f"Content-Type: {_JSON}, and no Content-Encoding",
            found=f"{kind or 'no type'}, {coding}"[:80],
        )  # fmt: skip


async def _read(http: Request, most: int) -> bytes:
    """The body, of which no more is kept than is allowed."""

    def too_large(found: str) -> refusals.TooLargeError:
        return refusals.TooLargeError(
            "the body", expected=f"at most {most} bytes", found=found,
            fix="send fewer spots a request, or embeddings as base64 of float16",
        )  # fmt: skip

    stated = http.headers.get("content-length", "")
    if stated.isascii() and stated.isdigit() and int(stated[:20]) > most:
        raise too_large(stated[:20])
    body = bytearray()
    try:
        async for chunk in http.stream():
            if len(body) + len(chunk) > most:
                raise too_large("more")
            body += chunk
    except starlette.requests.ClientDisconnect:
        raise refusals.NotJsonError("the body ended early") from None
    return bytes(body)


def _add_errors(app: fastapi.FastAPI) -> None:
    @app.exception_handler(errors.StemjaxError)
    async def refuse(_: Request, error: errors.StemjaxError) -> Response:
        return _error(error)

    @app.exception_handler(starlette.exceptions.HTTPException)
    async def not_served(http: Request, error: starlette.exceptions.HTTPException) -> Response:
        missing = error.status_code == 404
        return _error(
            refusals.NotServedError(
                f"{http.method[:20]} {http.url.path[:80]}",
                expected=", ".join(PATHS) if missing else f"{(error.headers or {}).get('Allow')}",
                status=error.status_code,
                headers=dict(error.headers or {}),
                fix="see /openapi.json",
            )
        )

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _error(
            refusals.FailedError(
                "the service failed", found=type(error).__name__, fix="look at the server's log"
            )
        )


def _error(error: errors.StemjaxError) -> Response:
    return Response(
        wire.error_body(error), refusals.status_of(error), refusals.headers_of(error), _JSON
    )


def _json(model: pydantic.BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type=_JSON)


class _Counted:
    """Middleware that counts every answer by path and status, and how long it took."""

    def __init__(self, app: ASGIApp, count: Callable[[str, int, float], None]) -> None:
        self._app, self._count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        call: Callable[..., Awaitable[None]] = self._app
        try:
            await call(scope, receive, noting)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._count(path, status, time.monotonic() - began)


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        found[status] = {"model": wire.ErrorResponse, "description": _ERRORS[status]}
        if status == 503:
            found[status]["headers"] = _WAIT
    return found


def _schema(app: fastapi.FastAPI, service: services.Service) -> dict[str, Any]:
    """The OpenAPI document, with the request that FastAPI does not read itself, and examples."""
    made = openapi.get_openapi(
        title=app.title, version=app.version, summary=app.summary, description=app.description,
        routes=app.routes,
    )  # fmt: skip
    where = "#/components/schemas/{model}"
    request = wire.ProfilesRequest.model_json_schema(ref_template=where)
    made["components"]["schemas"] |= {**request.pop("$defs"), "ProfilesRequest": request}
    schema = {"$ref": where.format(model="ProfilesRequest")}
    content = {_JSON: {"schema": schema, "examples": _examples(service)}}
    made["paths"][PROFILES]["post"]["requestBody"] = {"required": True, "content": content}
    return made


def _examples(service: services.Service) -> dict[str, Any]:
    """Requests that this very service answers."""
    width = service.describe().encoder.width
    zeros = np.zeros((2, width), "<f2")
    packed = {"dtype": "float16", "shape": [2, width], "base64": base64.b64encode(zeros).decode()}
    common = {"encoder": service.encoder_digest, "slide": "A1", "barcodes": ["8x9", "8x10"]}
    found = {"bytes": {"value": {**common, "embeddings": packed, "encoding": "base64"}}}
    if width <= _NUMBERS_UP_TO:
        found["numbers"] = {"value": {**common, "embeddings": zeros.tolist(), "seed": 1}}
    return found
