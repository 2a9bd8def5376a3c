"""Large answers to clients: in slices, and in turn by user."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest

from homeserver.errors import LimitExceeded
from homeserver.reading import large_answers
from homeserver.reading.large_answers import LARGE_MIN, LargeAnswers
from homeserver.storage.database import Database
from tests.fakes.reading_server import ReadingServer, user


def test_large_answers_are_read_in_slices(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_answers, "SLICE", 3)
    monkeypatch.setattr(large_answers, "LARGE_MIN", 1)

    async def story() -> None:
        server = ReadingServer(database)
        room = await server.create_room("alice", join=["bob", "carol"], name="named")
        reader, alice = server.state_and_members, user("alice")
        sizes: list[int] = []
        by_id = server.events.by_id

        async def noted(room_id: str, event_ids: Any) -> Any:
            sizes.append(len(list(event_ids)))
            return await by_id(room_id, event_ids)

        monkeypatch.setattr(server.events, "by_id", noted)
        head = await server.heads.get(room)
        state = orjson.loads(await reader.state(alice, room))
        assert {(event["type"], event["state_key"]) for event in state} == set(head.state)
        assert len(sizes) > 1
        assert max(sizes) <= 3
        members = orjson.loads(await reader.members(alice, room, membership="join"))
        assert {event["state_key"] for event in members} == {user("alice"), user("bob"), user("carol")}
        none = orjson.loads(await reader.members(alice, room, membership="ban"))
        assert none == []

    asyncio.run(story())


def test_a_user_gets_one_turn_at_a_time_and_others_get_theirs() -> None:
    async def story() -> None:
        large = LargeAnswers(None, None, None)  # type: ignore[arg-type]
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(large.turn("@greedy:x", LARGE_MIN))
            waiting = [asyncio.ensure_future(stack.enter_async_context(large.turn("@greedy:x", LARGE_MIN)))]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not waiting[0].done()
            await stack.enter_async_context(large.turn("@greedy:x", LARGE_MIN - 1))
            await stack.enter_async_context(large.turn("@other:x", LARGE_MIN))
            waiting[0].cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(story())


def test_too_many_that_wait_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_answers, "WAITING_PER_USER_MAX", 2)

    async def story() -> None:
        large = LargeAnswers(None, None, None)  # type: ignore[arg-type]

        async def ask() -> None:
            async with large.turn("@greedy:x", LARGE_MIN):
                await asyncio.Event().wait()

        tasks = [asyncio.ensure_future(ask()) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(LimitExceeded):
            await ask()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(story())
