"""The outermost layer: CORS on every answer, pre-flight requests, and a Matrix error for every exception.

https://spec.matrix.org/v1.19/client-server-api/#web-browser-clients
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from homeserver.errors import (
    BadJson,
    InvalidParam,
    MatrixError,
    MethodNotAllowed,
    MissingParam,
    NotJson,
    RemoteError,
    TooLarge,
    Unrecognized,
)
from homeserver.web.responses import PlainResponse, error_response, json_response
from homeserver.web.routes import RouteIndex
from homeserver.web.shares import give_back_all

logger = structlog.get_logger(__name__)

CORS_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, POST, PUT, DELETE, OPTIONS"),
    (b"access-control-allow-headers", b"X-Requested-With, Content-Type, Authorization"),
)

_BY_STATUS: dict[int, type[MatrixError]] = {404: Unrecognized, 405: MethodNotAllowed, 413: TooLarge}


def install(app: FastAPI, aliases: Mapping[str, str] | None = None) -> None:
    """Make an application find its routes, answer errors and offer CORS as the specification asks.

    ``aliases`` are other names for prefixes of paths.
    """
    index = RouteIndex(app.router, aliases)
    app.router.middleware_stack = index
    for kind in (MatrixError, RemoteError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer)
    app.add_middleware(Edge)
    app.middleware_stack = FrontDoor(app, index)


class FrontDoor:
    """Where requests come in: sends those for plain routes straight to their endpoint.

    All others go through FastAPI's own layers (telemetry, exit stacks, three layers of error handling), which cost as
    much CPU as answering a long poll.
    """

    def __init__(self, app: FastAPI, index: RouteIndex) -> None:
        self._app = app
        self._index = index
        self._long_way: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application, in place of FastAPI's own stack."""
        if scope["type"] == "http":
            endpoint = self._index.plain_endpoint(scope)
            if endpoint is not None:
                await _short_way(endpoint, scope, receive, send)
                return
        if self._long_way is None:
            self._long_way = self._app.build_middleware_stack()
        await self._long_way(scope, receive, send)


async def _short_way(
    endpoint: Callable[[Request], Awaitable[Response]], scope: Scope, receive: Receive, send: Send
) -> None:
    """Call a plain endpoint, and send its response as ``Edge`` does, without wrapping ``send``."""
    try:
        try:
            _check_query(scope)
            response = await endpoint(Request(scope, receive, send))
        except ClientDisconnect:
            return
        except Exception as error:
            response = answer_to(error, scope)
        if isinstance(response, PlainResponse):
            await response.send(scope, send, CORS_HEADERS, with_body=scope["method"] != "HEAD")
        else:
            await Edge(response)(scope, receive, send)
    finally:
        give_back_all(scope)


def _check_query(scope: Scope) -> None:
    if b"%00" in scope["query_string"]:
        raise InvalidParam("The query has a NUL in it")


class Edge:
    """An ASGI application around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; an exception becomes an error answer if none has started."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "OPTIONS":
            # "the server MUST NOT perform any logic defined for the endpoints when approached with an OPTIONS request"
            await send({"type": "http.response.start", "status": 204, "headers": list(CORS_HEADERS)})
            await send({"type": "http.response.body"})
            return
        has_started = False

        async def send_with_cors(message: MutableMapping[str, Any]) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [*message.get("headers", ()), *CORS_HEADERS]
            elif method == "HEAD" and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            _check_query(scope)
            await self._app(scope, receive, send_with_cors)
        except ClientDisconnect:
            return
        except Exception as error:
            if has_started:
                # the answer has started: uvicorn closes the connection, so that the client does not take a part for the
                # whole
                raise
            await answer_to(error, scope)(scope, receive, send_with_cors)
        finally:
            give_back_all(scope)


async def _answer(request: Request, error: Exception) -> Response:
    return answer_to(error, request.scope)


def answer_to(error: Exception, scope: Scope) -> Response:
    """The response to an exception. An unexpected one is logged, and the client gets only a general error."""
    if isinstance(error, MatrixError | RemoteError):
        return error_response(error)
    if isinstance(error, HTTPException):
        return _answer_to_http_exception(error)
    if isinstance(error, RequestValidationError):
        return error_response(_from_validation(error))
    logger.error("unexpected error", method=scope["method"], path=repr(scope["path"]), exc_info=error)
    return json_response({"errcode": "M_UNKNOWN", "error": "Internal server error"}, 500)


def _answer_to_http_exception(error: HTTPException) -> Response:
    kind = _BY_STATUS.get(error.status_code)
    body = kind().body() if kind else {"errcode": "M_UNKNOWN", "error": str(error.detail)}
    headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    return json_response(body, error.status_code, headers)


def _from_validation(error: RequestValidationError) -> MatrixError:
    first: dict[str, Any] = next(iter(error.errors()), {})
    location = [str(part) for part in first.get("loc", ())]
    kind: str = first.get("type", "")
    text = f"'{'.'.join(location[1:])}': {first.get('msg', 'invalid')}"
    if kind == "json_invalid":
        return NotJson()
    if kind == "missing":
        return MissingParam(text)
    return BadJson(text) if location[:1] == ["body"] else InvalidParam(text)
