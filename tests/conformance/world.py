"""A whole server of ours in this process, with users and rooms, and those who ask it: clients and another server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Awaitable, Coroutine, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import httpx
import orjson
import structlog
from hypothesis import HealthCheck, settings
from starlette.types import ASGIApp, Receive, Scope, Send

from homeserver.accounts.access_tokens import hash_token
from homeserver.storage.database import Database
from homeserver.storage.sessions import NewTokens, start_session
from tests.fakes.servers import OurServer, RemoteServer, Servers

T = TypeVar("T")

OURS, REMOTE = "ours.test:8448", "remote.test:8448"
V1, V2 = "/_matrix/federation/v1", "/_matrix/federation/v2"
ALICE, BOB, CAROL = (f"@{name}:{OURS}" for name in ("alice", "bob", "carol"))
ZOE = f"@zoe:{REMOTE}"
ANSWER_SECONDS_MAX = 60.0
"""No request may take longer, whatever is in it. (Most take milliseconds; the machine may be busy.)"""

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""The same examples each time; ``FUZZ_EXAMPLES=10000`` looks for new ones."""

CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, POST, PUT, DELETE, OPTIONS",
    "access-control-allow-headers": "X-Requested-With, Content-Type, Authorization",
}


def failing_quietly(app: ASGIApp) -> ASGIApp:
    """The fake fails where it is asked for what it does not have; that is a 500 of a remote server, and not a bug."""

    async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(Exception):  # the 500 has been sent
            await app(scope, receive, send)

    return quiet


class World:
    """Our server with alice, bob and carol, and ``REMOTE``, which signs what it asks."""

    def __init__(self, runner: asyncio.Runner, servers: Servers, settings: Mapping[str, Any]) -> None:
        self._runner = runner
        self.servers = servers
        self._settings = settings
        self._numbers = itertools.count()
        self.ours: OurServer
        self.remote: RemoteServer
        self._client: httpx.AsyncClient

    # -- life ----------------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        await self.servers.__aenter__()
        settings = {"registration": {"enabled": True}, "rate_limits": {"enabled": False}, **self._settings}
        self.ours = await self.servers.ours(OURS, **settings)
        self.remote = self.servers.remote(REMOTE)
        self.servers.network.apps[REMOTE] = failing_quietly(self.remote.app)
        transport = httpx.ASGITransport(self.ours.app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url=f"https://{OURS}")
        for localpart in ("alice", "bob", "carol"):
            await self.ours.user(localpart)
            await self.new_token(localpart)

    async def end(self) -> None:
        await self._client.aclose()
        await self.servers.__aexit__()

    async def new_token(self, localpart: str, device: str = "DEVICE", *, expires_ts: int | None = None) -> str:
        """A session of a user, without the cost of a password; the token of ``DEVICE`` is the user's name."""
        token = localpart if device == "DEVICE" else f"{localpart}-{device}"
        user_id = f"@{localpart}:{OURS}"
        tokens = NewTokens(hash_token(token), None, expires_ts)
        await self.ours.get(Database).write(start_session, user_id, device, None, tokens, 1)
        return token

    def number(self) -> int:
        """Another one each time, for names."""
        return next(self._numbers)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    # -- asking --------------------------------------------------------------------------------------------------------

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str | None = "alice",
        *,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """A request of a client; ``body`` is an object, or the very bytes."""
        sent: dict[str, str] = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = path if path.startswith(("/_", "/.")) else f"/_matrix/client/v3{path}"
        content = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        return await self._client.request(method, url, content=content, headers={**sent, **(headers or {})})

    async def raw(
        self, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]] = (), *body: bytes
    ) -> httpx.Response:
        """A request just as it is given: path and query as bytes, headers that may come twice, a body in pieces."""
        return await send_raw(self.ours.app, method, target, headers, body)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str | None = "alice",
        *,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """The same, with what must be true of every answer checked."""
        return self.checked(self.send(method, path, body, token, headers=headers))

    def ask_signed(self, method: str, uri: str, content: Any = None, **options: Any) -> httpx.Response:
        """A request of the other server."""
        return self.checked(self.remote.request(method, OURS, uri, content, **options))

    def checked(self, request: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
        began = time.monotonic()
        response = self.run(request)
        took = time.monotonic() - began
        assert took < ANSWER_SECONDS_MAX, f"{took:.1f} s for {response.request.method} {response.request.url}"
        check_answer(response)
        return response


async def send_raw(
    app: ASGIApp, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: Sequence[bytes]
) -> httpx.Response:
    """What an HTTP server would hand to the application, without a client that puts it in order first."""
    path, _, query = target.partition(b"?")
    pieces = [{"type": "http.request", "body": piece, "more_body": True} for piece in body]
    pieces.append({"type": "http.request", "body": b"", "more_body": False})
    started: dict[str, Any] = {}
    chunks: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return pieces.pop(0) if pieces else {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            started.update(message)
        else:
            chunks.append(message.get("body", b""))

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "https",
        "path": unquote(path.decode("latin-1")), "raw_path": path, "query_string": query, "root_path": "",
        "headers": list(headers), "server": ("ours.test", 8448), "client": ("192.0.2.1", 1),
    }  # fmt: skip
    await app(scope, receive, send)
    request = httpx.Request(method, f"https://{OURS}/")
    return httpx.Response(started["status"], headers=started["headers"], content=b"".join(chunks), request=request)


def check_answer(response: httpx.Response) -> None:
    """What is true of every answer: never a 500, JSON, readable for web clients, a Matrix error if it is one."""
    what = f"{response.request.method} {str(response.request.url)[:300]}: {response.status_code} {response.text[:300]}"
    assert response.status_code < 500 or response.status_code in (502, 504), what
    for name, value in CORS.items():
        assert response.headers.get(name) == value, what
    if response.status_code == 204 or response.request.method == "HEAD":
        return
    assert response.headers["content-type"] == "application/json", what
    body = response.json()
    if response.status_code < 400:
        return
    assert isinstance(body, dict), what
    if response.status_code == 401 and "flows" in body:
        return
    assert isinstance(body["errcode"], str), what
    assert body["errcode"].startswith("M_"), what
    assert isinstance(body["error"], str), what
    assert body["error"], what


def refused(response: httpx.Response, status: int, errcode: str) -> dict[str, Any]:
    assert (response.status_code, response.json().get("errcode")) == (status, errcode), response.text
    body: dict[str, Any] = response.json()
    return body


def fine(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def path_of(*segments: str) -> str:
    """A path of segments, each encoded by itself."""
    return "".join("/" + quote(segment, safe="") for segment in segments)


@contextlib.contextmanager
def nothing_unexpected(runner: asyncio.Runner) -> Iterator[list[Mapping[str, Any]]]:
    """Fail if an error is logged meanwhile, or a task fails that nobody waits for."""
    troubles: list[Any] = []
    loop = runner.get_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    try:
        with structlog.testing.capture_logs() as entries:
            yield troubles
    finally:
        loop.set_exception_handler(before)
    troubles += [entry for entry in entries if entry["log_level"] in ("error", "critical")]
    assert troubles == []


async def together(*requests: Awaitable[T]) -> list[T]:
    return list(await asyncio.gather(*requests))
