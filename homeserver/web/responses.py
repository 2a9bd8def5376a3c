"""Answers: JSON values, bytes that are JSON already, and errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from homeserver.errors import LimitExceeded, MatrixError, RemoteError, RemoteFailed
from homeserver.web.large_answers import PIECE_BYTES, LargeAnswers

JSON_CONTENT_TYPE = "application/json"

RawHeaders = Iterable[tuple[bytes, bytes]]


class PlainResponse(Response):
    """A response with exactly the given headers, without Starlette's work for cookies and charsets."""

    def __init__(self, body: bytes, status: int, content_type: bytes, headers: RawHeaders) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"content-type", content_type),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole response, as an ASGI application."""
        await self.send(scope, send, (), with_body=True)

    async def send(self, scope: Scope, send: Send, more_headers: RawHeaders, *, with_body: bool) -> None:
        """Send the whole response, a large one in pieces; for a HEAD request without the body.

        It can be sent once: the body of a large one is not kept.
        """
        headers = [*self.raw_headers, *more_headers]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        if len(self.body) <= PIECE_BYTES or not with_body or (answers := _large_answers(scope)) is None:
            await send({"type": "http.response.body", "body": self.body if with_body else b""})
        else:
            await answers.write(self._give_away_body(), scope, send)

    def _give_away_body(self) -> bytes:
        body, self.body = bytes(self.body), b""
        return body


def _large_answers(scope: Scope) -> LargeAnswers | None:
    services = getattr(scope["app"].state, "services", {}) if "app" in scope else {}
    found: LargeAnswers | None = services.get(LargeAnswers)
    return found


def json_response(value: Any, status: int = 200, headers: RawHeaders = ()) -> Response:
    """Answer with a JSON value. It must not contain bytes; wrap encoded JSON in ``orjson.Fragment``."""
    return PlainResponse(orjson.dumps(value), status, b"application/json", headers)


def bytes_response(
    body: bytes, status: int = 200, content_type: str = JSON_CONTENT_TYPE, headers: RawHeaders = ()
) -> Response:
    """Answer with bytes as they are; they are JSON unless ``content_type`` says otherwise."""
    return PlainResponse(body, status, content_type.encode("latin-1"), headers)


def error_response(error: MatrixError | RemoteError) -> Response:
    """The answer for an error.

    A remote error that no caller has translated becomes a 502, without what the other server said.

    https://spec.matrix.org/v1.19/client-server-api/#standard-error-response
    """
    if isinstance(error, RemoteError):
        error = RemoteFailed(f"The server {error.destination} could not be asked")
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, LimitExceeded) and isinstance(wait_ms := error.extra.get("retry_after_ms"), int):
        # "Homeservers SHOULD include a Retry-After header for any response with a 429 status code." Whole seconds.
        headers.append((b"retry-after", str(max(1, -(-wait_ms // 1000))).encode()))
    return json_response(error.body(), error.status, headers)
