"""A small application with everything that ``homeserver.web`` gives, called as an ASGI server would call it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import orjson
from fastapi import FastAPI
from starlette.types import ASGIApp


@dataclass
class Answer:
    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def json(self) -> Any:
        return orjson.loads(self.body)

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, f"{name} is there {len(found)} times"
        return found[0] if found else None


def call(
    app: ASGIApp,
    method: str,
    path: str | bytes,
    body: bytes | Iterable[bytes] = b"",
    headers: Iterable[tuple[bytes, bytes]] = (),
    *,
    disconnects: bool = False,
) -> Answer:
    """One request, with a path of any bytes."""
    raw_path, _, query = (path.encode() if isinstance(path, str) else path).partition(b"?")
    chunks = [body] if isinstance(body, bytes) else list(body)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path.decode("latin-1")),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("example.org", 80),
    }
    answer = Answer()

    async def receive() -> Any:
        if chunks:
            more = len(chunks) > 1 or disconnects
            return {"type": "http.request", "body": chunks.pop(0), "more_body": more}
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
        else:
            answer.body += message.get("body", b"")

    asyncio.run(app(scope, receive, send))
    return answer


def new_app() -> FastAPI:
    return FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
