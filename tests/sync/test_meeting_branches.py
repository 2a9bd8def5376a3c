"""What a client is told where branches of a room meet, and an older state counts again."""

from __future__ import annotations

import asyncio

from homeserver.protocol.events import EventDraft
from homeserver.storage.database import Database
from tests.fakes.clock import FakeClock
from tests.fakes.reading_server import ReadingServer, bodies, joined, types, user


def test_join_that_counts_again_brings_the_whole_room(database: Database) -> None:
    async def story() -> None:
        clock = FakeClock()
        server = ReadingServer(database, clock)
        room = await server.create_room("alice", join=["bob"], name="named")
        before_leaving = await server.heads.get(room)
        # State resolution sorts by the servers' clocks: with an earlier time, the departure loses against the join.
        clock.advance(-60_000)
        left = (await server.sync("bob"))["next_batch"]
        await server.leave(room, "bob")
        response = await server.sync("bob", left)
        assert list(response["rooms"]) == ["leave"]
        clock.advance(60_000)
        draft = EventDraft("m.room.message", user("alice"), {"msgtype": "m.text", "body": "elsewhere"})
        branch = await server.sender.compose(server.writers.look_at(before_leaving), draft)
        await server.append(room, [branch])
        assert user("bob") in (await server.heads.get(room)).joined, "the branches did not meet as this test needs it"
        for teller in (server, ReadingServer(database, clock)):
            for state_after in (False, True):
                back = joined(await teller.sync("bob", response["next_batch"], state_after=state_after), room)
                known = [*back["state_after" if state_after else "state"]["events"], *back["timeline"]["events"]]
                assert {"m.room.create", "m.room.power_levels", "m.room.name"} <= set(types(known))
                assert bodies(back)[-1] == "elsewhere"
        since = (await server.sync("bob", response["next_batch"]))["next_batch"]
        await server.send(room, "alice", "here")
        assert bodies(joined(await server.sync("bob", since), room)) == ["here"]

    asyncio.run(story())
