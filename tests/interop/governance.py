"""The governance API of our servers, as a client calls it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from tests.interop.client import Json, MatrixClient, MatrixError

UNTIL_SECONDS_MAX = 30.0


async def governed(client: MatrixClient, method: str, room_id: str, path: str, body: Json | None = None) -> Json:
    """A request below a room. Raises MatrixError unless the answer is 200."""
    path = f"/_homeserver/v1/rooms/{quote(room_id, safe='')}/{path}"
    headers = {"Authorization": f"Bearer {client.token}"}
    response = await client._http.request(method, path, json=body, headers=headers)
    if response.status_code != 200:
        raise MatrixError(method, path, response)
    answer: Json = response.json()
    return answer


async def roles(client: MatrixClient, room_id: str) -> Json:
    return await governed(client, "GET", room_id, "roles")


async def give(client: MatrixClient, room_id: str, user_id: str, role: str, **options: Any) -> Json:
    return await governed(client, "PUT", room_id, f"roles/{quote(user_id)}", {"role": role, **options})


async def revoke(client: MatrixClient, room_id: str, user_id: str, reason: str | None = None) -> Json:
    body = {} if reason is None else {"reason": reason}
    return await governed(client, "DELETE", room_id, f"invitations/{quote(user_id)}", body)


async def statuses(client: MatrixClient, room_id: str) -> dict[str, str]:
    """Where invitations stand, by user ID."""
    found = await governed(client, "GET", room_id, "invitations")
    return {invitation["user_id"]: invitation["status"] for invitation in found["invitations"]}


async def bans(client: MatrixClient, room_id: str) -> list[Json]:
    found: list[Json] = (await governed(client, "GET", room_id, "bans"))["bans"]
    return found


async def readers(client: MatrixClient, room_id: str, event_id: str) -> dict[str, int]:
    """Who has read an event, and when."""
    found = await governed(client, "GET", room_id, f"events/{quote(event_id)}/receipts")
    return {receipt["user_id"]: receipt["ts"] for receipt in found["receipts"]}


async def soon(probe: Callable[[], Awaitable[Any]], expected: Any) -> None:
    """The probe finds this before long."""
    found: Any = None
    try:
        async with asyncio.timeout(UNTIL_SECONDS_MAX):
            while (found := await probe()) != expected:  # noqa: ASYNC110 - it is another process that knows
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{found!r} is not {expected!r}") from None
