"""The governance API of our servers, as a client calls it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests.interop.client import UNTIL_SECONDS_MAX, Json, MatrixClient, MatrixError
from tests.interop.conftest import Pair
from tests.interop.servers import OurServer, Server

LAST_OWNER = "This is the last owner. Please set a new owner before removing this one."


def ours(pair: Pair, alice: MatrixClient, bob: MatrixClient) -> list[MatrixClient]:
    """Those of the two whose server has the governance API."""
    return [client for client, server in ((alice, pair.home), (bob, pair.away)) if isinstance(server, OurServer)]


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


async def promote(pair: Pair, alice: MatrixClient, room_id: str, user_id: str, role: str, level: int) -> None:
    """Alice gives somebody a role, by what her server offers for that."""
    if isinstance(pair.home, OurServer):
        await give(alice, room_id, user_id, role)
        return
    levels = (await alice.state(room_id))["m.room.power_levels", ""]["content"]
    users = {**levels.get("users", {}), user_id: level}
    await alice.set_state(room_id, "m.room.power_levels", {**levels, "users": users})


async def has_role(client: MatrixClient, room_id: str, user_id: str, name: str) -> None:
    """The client's server has come to know of a role."""

    async def probe() -> bool:
        return user_id in [member["user_id"] for member in (await roles(client, room_id))[name]]

    await soon(probe, True)


async def refused(attempt: Awaitable[Any], reason: str) -> None:
    """The attempt meets a rule of the governance API."""
    with pytest.raises(MatrixError) as caught:
        await attempt
    assert (caught.value.status, caught.value.errcode) == (403, "M_FORBIDDEN")
    assert caught.value.body["reason"] == reason
    assert reason != "last_owner" or caught.value.body["error"] == LAST_OWNER


def ownerless(server: Server) -> list[str]:
    """The rooms that the operator is shown as without an owner."""
    assert isinstance(server, OurServer)
    return [room["room_id"] for room in json.loads(server.command_line("rooms", "ownerless", "--json"))]
