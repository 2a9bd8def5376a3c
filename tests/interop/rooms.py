"""Stories that many tests begin with."""

from __future__ import annotations

from typing import Any

from tests.interop.client import MatrixClient


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
