"""``/sync`` as clients see it."""

from __future__ import annotations

import asyncio

from homeserver.storage.database import Database
from tests.fakes.reading_server import ReadingServer, bodies, joined, types, user


def test_first_sync_and_what_comes_then(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob"], name="A room")
        for n in range(12):
            await server.send(room, "alice", f"message {n}")
        first = await server.sync("bob")
        shown = joined(first, room)
        assert bodies(shown) == [f"message {n}" for n in range(2, 12)]
        assert shown["timeline"]["limited"] is True
        assert sorted(types(shown["state"]["events"])) == [
            "m.room.create",
            "m.room.join_rules",
            "m.room.member",
            "m.room.member",
            "m.room.name",
            "m.room.power_levels",
        ]
        assert shown["summary"] == {"m.joined_member_count": 2, "m.invited_member_count": 0}
        await server.send(room, "alice", "news")
        then = await server.sync("bob", first["next_batch"])
        assert bodies(joined(then, room)) == ["news"]
        assert joined(then, room)["state"]["events"] == []
        assert joined(then, room)["timeline"]["limited"] is False
        nothing = await server.sync("bob", then["next_batch"])
        assert "rooms" not in nothing

    asyncio.run(story())
