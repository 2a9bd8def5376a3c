"""homeserver/reading/state_and_members.py. https://spec.matrix.org/v1.19/client-server-api/#getting-events-for-a-room"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from homeserver.reading.tokens import parse_token
from homeserver.storage.database import Database
from tests.fakes.reading_server import ReadingServer, user


def test_members(database: Database) -> None:
    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", "carol"])
        early = parse_token((await server.sync("alice"))["next_batch"])
        await server.leave(room, "carol")
        await server.invite(room, "alice", "dave")

        async def members(**options: Any) -> dict[str, str]:
            found = orjson.loads(await server.state_and_members.members(user("alice"), room, **options))
            return {event["state_key"][1:-12]: event["content"]["membership"] for event in found}

        assert await members() == {"alice": "join", "bob": "join", "carol": "leave", "dave": "invite"}
        assert await members(at=early) == {"alice": "join", "bob": "join", "carol": "join"}
        assert await members(membership="join") == {"alice": "join", "bob": "join"}
        assert await members(not_membership="join") == {"carol": "leave", "dave": "invite"}
        assert set(await members(membership="join", not_membership="leave")) == {"alice", "bob", "dave"}
        found = await server.state_and_members.joined_members(user("alice"), room)
        assert {member.user_id: member.display_name for member in found} == {user("alice"): "alice", user("bob"): "bob"}
        assert await server.state_and_members.joined_rooms(user("bob")) == [room]
        assert await server.state_and_members.joined_rooms(user("carol")) == []

    asyncio.run(story())
