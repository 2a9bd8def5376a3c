"""What a gap with many member changes costs a client that loads members lazily: what it is sent, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from tests.fakes.reading_server import ReadingServer, joined

LAZY = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 10}}}
JOINS, RENAMES, MESSAGES = 40, 40, 12


@pytest.mark.parametrize("state_after", [False, True])
def test_a_gap_with_many_member_changes(sqlite_url: str, state_after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(sqlite_url)

    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", name="named")
        since = (await server.sync("alice", filter=LAZY))["next_batch"]
        for number in range(JOINS):
            await server.join(room, f"user{number}")
        for number in range(RENAMES):
            await server.member(room, "user0", "user0", "join", displayname=f"name {number}")
        for _ in range(MESSAGES):
            await server.send(room, "alice")
        # Another process has nothing in memory.
        reader = ReadingServer(database)
        parsed: list[StoredEvent] = []
        keep = reader.events.keep

        def kept(stored: StoredEvent) -> StoredEvent:
            parsed.append(stored)
            return keep(stored)

        monkeypatch.setattr(reader.events, "keep", kept)
        reads: list[object] = []
        read = database.read

        async def counted(*arguments: object) -> object:
            reads.append(arguments[0])
            return await read(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(database, "read", counted)
        told = joined(await reader.sync("alice", since, filter=LAZY, state_after=state_after), room)
        state = told["state_after" if state_after else "state"]["events"]
        # "the server MUST return membership events for events in the gap": of each member the last one.
        assert told["timeline"]["limited"]
        assert _users(state) >= {f"@user{number}:example.org" for number in range(JOINS)}
        assert [e["content"]["displayname"] for e in state if e["state_key"].startswith("@user0:")] == [
            f"name {RENAMES - 1}"
        ]
        assert len(parsed) <= 10 + len(state) + 15, len(parsed)
        assert len(reads) <= 12, reads

    try:
        asyncio.run(story())
    finally:
        database.close()


def _users(state: Iterable[dict[str, str]]) -> set[str]:
    return {event["state_key"] for event in state if event["type"] == "m.room.member"}
