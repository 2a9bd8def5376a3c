"""The lists of the governance API in a room of 10,000 members, beside ``/joined_members`` of the same room.

The room is written straight into the database of a server that stands still: 10,000 people cannot be asked in one by
one while somebody waits.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from urllib.parse import quote

from benchmarks.http import Answer
from benchmarks.measuring import Figure, latencies
from benchmarks.servers import Bench

MEMBERS = 10_000
INVITED = 10_000
BANNED = 1_000
MODERATORS = 50
REQUESTS = 30
PAGE = 50


async def governance(bench: Bench) -> list[Figure]:
    """/roles, /invitations, /bans and /receipts of a room with 10,000 members, beside its /joined_members."""
    owner = await bench.site.user()
    room_id = await owner.create_room(preset="public_chat", name="Everybody")
    levels = (await owner.call("GET", f"/v3/rooms/{quote(room_id)}/state/m.room.power_levels/")).json()
    users = {_member(number): 50 for number in range(MODERATORS)}
    content = {**levels, "users": {**levels["users"], **users}}
    await owner.call("PUT", f"/v3/rooms/{quote(room_id)}/state/m.room.power_levels/", content)
    event_id = (await owner.send(room_id, "read this")).json()["event_id"]
    last = (await owner.send(room_id, "and this")).json()["event_id"]
    await asyncio.to_thread(bench.own_server.stop)
    bench.site.http.close()
    await asyncio.to_thread(_fill, bench, room_id, owner.user_id, last)
    await asyncio.to_thread(bench.own_server.start)
    bench.pids[:] = [bench.own_server.pid]
    room = f"/_homeserver/v1/rooms/{quote(room_id)}"
    paths = {
        "joined_members": f"/_matrix/client/v3/rooms/{quote(room_id)}/joined_members",
        "roles": f"{room}/roles",
        f"roles, {PAGE} of them": f"{room}/roles?limit={PAGE}",
        "invitations": f"{room}/invitations",
        f"invitations, {PAGE} of them": f"{room}/invitations?limit={PAGE}",
        "bans": f"{room}/bans",
        "receipts": f"{room}/events/{quote(event_id)}/receipts",
    }
    figures: list[Figure] = []
    for name, path in paths.items():
        figures += latencies(await _repeat(lambda path=path: owner.get(path)), name)  # type: ignore[misc]
    return figures


async def _repeat(ask: Callable[[], Awaitable[Answer]]) -> list[float]:
    await ask()
    return [(await ask()).seconds for _ in range(REQUESTS)]


def _member(number: int) -> str:
    return f"@member{number:05}:elsewhere.test"


def _fill(bench: Bench, room_id: str, owner: str, last: str) -> None:
    """Members, invitations, bans and receipts, as they would be if each had come in its time."""
    with closing(sqlite3.connect(bench.own_server.config_file.parent / "homeserver.db")) as database, database:
        _Filling(database, room_id, owner).fill(last)


class _Filling:
    """Writes rows as the server would."""

    def __init__(self, database: sqlite3.Connection, room_id: str, owner: str) -> None:
        self._database = database
        self._owner = owner
        self._room_id = room_id
        (self._room,) = database.execute("SELECT room_nid FROM rooms WHERE room_id = ?", [room_id]).fetchone()
