"""The calls of the client-server API that the benchmark makes."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from benchmarks.http import Answer, HttpClient, RequestFailed

SETTING_UP_AT_ONCE = 8

T = TypeVar("T")

_numbers = itertools.count()


class User:
    """Somebody logged in."""

    def __init__(self, http: HttpClient, user_id: str, token: str) -> None:
        self._http = http
        self.user_id = user_id
        self._headers = {"Authorization": f"Bearer {token}"}

    async def call(self, method: str, path: str, body: Any = None) -> Answer:
        """A request below ``/_matrix/client``; raises RequestFailed unless the answer is 200."""
        return await self.request(method, f"/_matrix/client{path}", body)

    async def request(self, method: str, path: str, body: Any = None) -> Answer:
        """A request with a whole path; raises RequestFailed unless the answer is 200."""
        answer = await self._http.request(method, path, body=body, headers=self._headers)
        if answer.status != 200:
            raise RequestFailed(f"{method} {path}: {answer.status} {answer.body[:300]!r}")
        return answer

    async def create_room(self, **options: Any) -> str:
        """A new room's ID."""
        return str((await self.call("POST", "/v3/createRoom", options)).json()["room_id"])

    async def join(self, room_id: str, via: str | None = None) -> Answer:
        """Join a room."""
        query = f"?via={quote(via)}" if via else ""
        return await self.call("POST", f"/v3/join/{quote(room_id)}{query}", {})

    async def send(self, room_id: str, text: str) -> Answer:
        """Send a message."""
        path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/b{next(_numbers)}"
        return await self.call("PUT", path, {"msgtype": "m.text", "body": text})

    async def sync(self, since: str | None = None, *, timeout_ms: int = 0, filter: Any = None) -> Answer:
        """One sync."""
        path = f"/v3/sync?timeout={timeout_ms}"
        path += f"&since={quote(since)}" if since else ""
        path += f"&filter={quote(json.dumps(filter))}" if filter else ""
        return await self.call("GET", path)


class Site:
    """A homeserver as its users reach it."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self.http = HttpClient(parts.hostname or "localhost", parts.port or 80)
        self._users: list[User] = []

    async def user(self) -> User:
        """A new user, by open registration."""
        name = f"bench-{secrets.token_hex(6)}"
        body = {"username": name, "password": secrets.token_urlsafe(16), "auth": {"type": "m.login.dummy"}}
        answer = await self.http.request("POST", "/_matrix/client/v3/register", body=body)
        if answer.status != 200:
            raise RequestFailed(f"cannot register: {answer.status} {answer.body[:300]!r}")
        registered = answer.json()
        return User(self.http, registered["user_id"], registered["access_token"])

    async def users(self, count: int) -> list[User]:
        """This many different users; the same ones each time."""
        missing = count - len(self._users)
        self._users += await gather_some(self.user() for _ in range(missing))
        return self._users[:count]

    async def shared_room(self, users: list[User], **options: Any) -> str:
        """A public room that all of these users are in."""
        room_id = await users[0].create_room(preset="public_chat", **options)
        await gather_some(user.join(room_id) for user in users[1:])
        return room_id


async def gather_some(coroutines: Iterable[Coroutine[Any, Any, T]], at_once: int = SETTING_UP_AT_ONCE) -> list[T]:
    """The results of all, a few at a time."""
    places = asyncio.Semaphore(at_once)

    async def one(coroutine: Coroutine[Any, Any, T]) -> T:
        async with places:
            return await coroutine

    return await asyncio.gather(*(one(coroutine) for coroutine in coroutines))
