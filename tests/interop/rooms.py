"""Stories that many tests begin with."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.interop.client import MatrixClient

ARRIVE_SECONDS_MAX = 90.0
"""How long a server may take that others had to wait before they try it again."""


async def room_of(owner: MatrixClient, *guests: MatrixClient, **options: Any) -> str:
    """A room that ``owner`` makes, invites the guests to, and they join; all of them have seen all of them join."""
    room_id = await owner.create_room(**{"preset": "private_chat", **options})
    for guest in guests:
        await owner.invite(room_id, guest.user_id)
        await invited(guest, room_id)
        await guest.join(room_id)
    for client in (owner, *guests):
        for member in (owner, *guests):
            await joined(client, room_id, member)
    return room_id


async def invited(client: MatrixClient, room_id: str) -> None:
    """The invitation has arrived."""
    await client.until(lambda: client.room(room_id).membership == "invite")


async def joined(client: MatrixClient, room_id: str, member: MatrixClient) -> None:
    """``client`` has seen ``member`` join."""
    await client.until(lambda: client.room(room_id).member(member.user_id) == "join")


async def talk_both_ways(one: MatrixClient, other: MatrixClient, room_id: str) -> None:
    """Each says something and sees what the other says."""
    for speaker, listener in ((one, other), (other, one)):
        text = f"{speaker.user_id} speaks {len(speaker.bodies(room_id))}"
        await speaker.send(room_id, text)
        await listener.until(lambda listener=listener, text=text: text in listener.bodies(room_id))  # type: ignore[misc]


async def everything_arrives(client: MatrixClient, room_id: str, expected: set[str]) -> None:
    """``client``'s server has all of these messages, soon."""
    missing = expected
    try:
        async with asyncio.timeout(ARRIVE_SECONDS_MAX):
            while missing := expected.difference(await client.message_bodies(room_id)):
                await client.sync(timeout_ms=1_000)
    except TimeoutError:
        some = sorted(missing)[:5]
        raise AssertionError(f"{client.user_id} misses {len(missing)} messages: {some} ...") from None
