"""The lists of the governance API in a room of 10,000 members, beside ``/joined_members`` of the same room.

The room is written straight into the database while the server stands still: nobody wants to wait until 10,000 people
have been asked in one by one.
"""

from __future__ import annotations

import asyncio
import itertools
from urllib.parse import quote

from benchmarks.http import Answer
from benchmarks.matrix import User
from benchmarks.measuring import Figure, Meter, latencies
from benchmarks.servers import Bench
from homeserver.protocol.events import Event
from homeserver.storage import receipts
from homeserver.storage.appends import (
    Appended,
    CurrentChange,
    EventWrite,
    GroupRef,
    GroupWrite,
    NewRoom,
    RoomAppend,
)
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from homeserver.storage.graph_writes import GraphWriter
from homeserver.storage.receipts import NewReceipt
from tests.factories.rooms import RoomFactory

MEMBERS = 10_000
INVITED = 2_000
"""Who has not answered yet; every fourth of the members was invited, too."""
BANNED = 1_000
MODERATORS = 50
REQUESTS = 100
PAGE = 100


async def governance(bench: Bench) -> list[Figure]:
    """/roles, /invitations, /bans and /receipts of a room with 10,000 members, beside its /joined_members."""
    server = bench.own_server
    owner = await bench.site.user()
    await asyncio.to_thread(server.stop)
    bench.site.http.close()
    database_file = server.config_file.parent / "homeserver.db"
    room, first = await asyncio.to_thread(_make_room, server.server_name, owner.user_id, str(database_file))
    await asyncio.to_thread(server.start)
    bench.pids[:] = [server.pid]
    bench.events += MEMBERS + INVITED + BANNED
    # The room goes on: the state at the message is not that of the room any more.
    await owner.request("PUT", f"/_matrix/client/v3/rooms/{quote(room)}/state/m.room.topic/", {"topic": "Welcome"})
    governed = f"/_homeserver/v1/rooms/{quote(room)}"
    lists = {
        "roles": f"{governed}/roles",
        "invitations": f"{governed}/invitations",
        "bans": f"{governed}/bans",
        "receipts": f"{governed}/events/{quote(first)}/receipts",
    }
    # First, so that what only the whole lists bring into the caches does not help the parts.
    figures = [await _measure_parts(bench, owner, *path) for path in lists.items()]
    lists["joined_members"] = f"/_matrix/client/v3/rooms/{quote(room)}/joined_members"
    figures += [await _measure(bench, owner, *path) for path in lists.items()]
    return list(itertools.chain.from_iterable(figures))


async def _measure(bench: Bench, owner: User, name: str, path: str) -> list[Figure]:
    """The whole list, again and again."""
    await owner.request("GET", path)
    with Meter(bench.pids) as meter:
        answers = [await owner.request("GET", path) for _ in range(REQUESTS)]
    return _figures(name, answers, meter)


async def _measure_parts(bench: Bench, owner: User, name: str, path: str) -> list[Figure]:
    """Part after part of the list, and from the start again."""
    path = f"{path}?limit={PAGE}"
    await owner.request("GET", path)
    answers: list[Answer] = []
    following: str | None = None
    with Meter(bench.pids) as meter:
        for _ in range(REQUESTS):
            answers.append(await owner.request("GET", path if following is None else f"{path}&from={following}"))
            following = answers[-1].json().get("next")
    return _figures(f"{name}, {PAGE} of them", answers, meter)


def _figures(name: str, answers: list[Answer], meter: Meter) -> list[Figure]:
    seconds = [answer.seconds for answer in answers]
    size = Figure("  the first", len(answers[0].body) / 1024, "KiB")
    return [*latencies(seconds, name), *meter.cpu_per(len(answers), "answer"), size]


def _member(number: int) -> str:
    return f"@member{number:05}:elsewhere.test"


def _name(number: int) -> str:
    """Names in another order than the user IDs."""
    return f"{number * 7919 % MEMBERS:05} is my name"


def _make_room(server_name: str, owner: str, database_file: str) -> tuple[str, str]:
    """A room of the owner's with all of these members, and a message that all of them have read; IDs of both."""
    room = RoomFactory("11", server_name, room_localpart="governed")
    room.create(owner, power_levels={"users": {_member(number): 50 for number in range(MODERATORS)}})
    for number in range(MEMBERS):
        if number % 4 == 0:
            room.invite(owner, _member(number), content={"reason": "you belong to us"})
        room.join(_member(number), content={"displayname": _name(number), "avatar_url": "mxc://x/picture"})
    for number in range(INVITED):
        room.invite(owner, f"@invited{number}:elsewhere.test", content={"reason": "we would like to have you"})
    for number in range(BANNED):
        room.ban(owner, f"@banned{number}:elsewhere.test", content={"reason": "flooding the room with nonsense"})
    messages = [room.send(owner, "read this"), room.send(owner, "and this")]
    database = Database(f"sqlite:///{database_file}")
    try:
        with database.begin() as connection:
            writer = GraphWriter(lambda user_id: user_id.endswith(f":{server_name}"))
            (appended,) = writer.append(connection, [_append(room, messages)])
            if not isinstance(appended, Appended):
                raise appended
            read = [
                NewReceipt(appended.room_nid, "m.read", _member(number), "", messages[number % 2].event_id, number)
                for number in range(MEMBERS)
            ]
            receipts.store(connection, [read])
    finally:
        database.close()
    return room.room_id, messages[0].event_id


def _append(room: RoomFactory, messages: list[Event]) -> RoomAppend:
    """The room as it comes when somebody joins it: its state, with what leads to it, and what happens then."""
    placed = {message.event_id for message in messages}
    state = room.state
    after = GroupRef(index=0)
    return RoomAppend(
        room_nid=0,
        generation=0,
        new_room=NewRoom(room.room_id, room.version.identifier, 1),
        events=[
            *(EventWrite(e, Verdict.OUTLIER, None) for e in room.events.values() if e.event_id not in placed),
            *(EventWrite(message, Verdict.ACCEPTED, after) for message in messages),
        ],
        groups=[GroupWrite(None, {key: event.event_id for key, event in state.items()})],
        changes=[CurrentChange(key, event, messages[0].event_id) for key, event in state.items()],
        current=after,
        extremities=(frozenset(), frozenset({messages[-1].event_id})),
    )
