"""homeserver/graph/internal_errors.py: an event that causes an internal error does not keep others out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from homeserver.graph import receive
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.internal_errors import as_outcome
from homeserver.graph.judgement import Judge
from homeserver.protocol.events import Event
from homeserver.storage.appends import RoomAppend
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from homeserver.storage.graph_writes import GraphWriter
from tests.factories.rooms import RoomFactory
from tests.fakes.servers import Servers
from tests.graph.test_receive import ALICE, OTHER, OURS, Scene, play

STONE = "stone"
INTERNAL = {"error": "The server failed to handle the event"}
Stumble = Callable[[pytest.MonkeyPatch, Exception], None]


def is_stone(event: Event) -> bool:
    return event.content.get("body") == STONE


def _in_parsing(patch: pytest.MonkeyPatch, error: Exception) -> None:
    parse_event = receive.parse_event

    def parse(pdu: Any, *args: Any, **options: Any) -> Event:
        if pdu["content"].get("body") == STONE:
            raise error
        return parse_event(pdu, *args, **options)

    patch.setattr(receive, "parse_event", parse)


def _in_verifying(patch: pytest.MonkeyPatch, error: Exception) -> None:
    verify_events = IncomingEvents.verify

    async def verify(self: IncomingEvents, events: Sequence[Event]) -> Any:
        if any(map(is_stone, events)):
            raise error
        return await verify_events(self, events)

    patch.setattr(IncomingEvents, "verify", verify)


def _in_judging(patch: pytest.MonkeyPatch, error: Exception) -> None:
    judge_event = Judge.judge

    async def judge(self: Judge, working: Any, event: Event, *args: Any, **options: Any) -> Any:
        if is_stone(event):
            raise error
        return await judge_event(self, working, event, *args, **options)

    patch.setattr(Judge, "judge", judge)


def _in_writing(patch: pytest.MonkeyPatch, error: Exception) -> None:
    """Here it is not one event alone that fails, but the whole transaction of the database."""
    write = GraphWriter.append

    def append(self: GraphWriter, connection: Connection, appends: Sequence[RoomAppend]) -> Any:
        if any(is_stone(written.event) for append in appends for written in append.events):
            raise error
        return write(self, connection, appends)

    patch.setattr(GraphWriter, "append", append)


def play_with_other_room(servers: Servers, story: Callable[[Scene, RoomFactory], Awaitable[None]]) -> None:
    """Bob is in a second room as well, of a third server. So is Alice, whose server sends events of both rooms."""

    async def both(at: Scene) -> None:
        room = RoomFactory("11", OTHER)
        room.create("zoe")
        room.join(ALICE)
        at.servers.remote(OTHER, room)
        await at.ours.join(at.bob, room.room_id, OTHER)
        await story(at, room)

    play(servers, both)


@pytest.mark.parametrize("stumble", [_in_parsing, _in_verifying, _in_judging, _in_writing])
def test_the_others_are_taken_in(servers: Servers, monkeypatch: pytest.MonkeyPatch, stumble: Stumble) -> None:
    async def story(at: Scene, other_room: RoomFactory) -> None:
        stone = at.room.send(ALICE, STONE)
        at.remote.hidden = {stone.event_id}
        others = [at.room.send(ALICE, f"after {number}") for number in range(10)]
        elsewhere = [other_room.send("zoe", f"elsewhere {number}") for number in range(10)]
        stumble(monkeypatch, ZeroDivisionError("a bug"))
        with structlog.testing.capture_logs() as logs:
            results = await at.send(stone, *others, *elsewhere)
        assert results == {stone.event_id: INTERNAL, **{event.event_id: {} for event in [*others, *elsewhere]}}
        for event in [*others, *elsewhere]:
            assert await at.verdict(event) == Verdict.ACCEPTED
        assert await at.verdict(stone) is None
        errors = [entry for entry in logs if entry["log_level"] == "error"]
        assert {entry["room_id"] for entry in errors} == {at.room.room_id}
        assert all(isinstance(entry["exc_info"], ZeroDivisionError) for entry in errors)
        if stumble is not _in_parsing:
            assert {entry["event_id"] for entry in errors} == {stone.event_id}

    play_with_other_room(servers, story)


@pytest.mark.parametrize("stumble", [_in_verifying, _in_judging, _in_writing])
def test_what_is_fetched_is_taken_in(servers: Servers, monkeypatch: pytest.MonkeyPatch, stumble: Stumble) -> None:
    async def story(at: Scene) -> None:
        stone = at.room.send(ALICE, STONE)
        after, last = at.room.send(ALICE, "after"), at.room.send(ALICE, "last")
        stumble(monkeypatch, ZeroDivisionError("a bug"))
        assert await at.send(last) == {last.event_id: {}}
        assert await at.verdict(after) == await at.verdict(last) == Verdict.ACCEPTED
        assert await at.verdict(stone) is None

    play(servers, story)


def test_a_whole_room_that_we_stumble_over(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(at: Scene, other_room: RoomFactory) -> None:
        async def fail(*_: Any) -> Any:
            raise ZeroDivisionError

        monkeypatch.setattr("homeserver.graph.ancestors.Ancestors.close_gap", fail)
        at.room.send(ALICE, "not sent")
        message, elsewhere = at.room.send(ALICE, "after a gap"), other_room.send("zoe")
        assert await at.send(message, elsewhere) == {message.event_id: INTERNAL, elsewhere.event_id: {}}

    play_with_other_room(servers, story)


@pytest.mark.parametrize("stumble", [_in_verifying, _in_judging, _in_writing])
def test_without_a_database_the_transaction_shall_come_again(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, stumble: Stumble
) -> None:
    async def story(at: Scene, other_room: RoomFactory) -> None:
        stone, elsewhere = at.room.send(ALICE, STONE), other_room.send("zoe")
        body = {"pdus": [stone.pdu, elsewhere.pdu]}
        with monkeypatch.context() as patch:
            stumble(patch, OperationalError("INSERT", {}, Exception("disk full")))
            answer = await at.remote.request("PUT", OURS, "/_matrix/federation/v1/send/again", body)
            assert answer.status_code == 500
        assert await at.send(stone, elsewhere, txn="again") == {stone.event_id: {}, elsewhere.event_id: {}}
        assert await at.verdict(stone) == await at.verdict(elsewhere) == Verdict.ACCEPTED

    play_with_other_room(servers, story)


def test_a_stop_is_no_stumble(database: Database) -> None:
    async def closed() -> None:
        database.close()
        with pytest.raises(RuntimeError) as raised:
            await database.read(lambda _: None)
        with pytest.raises(RuntimeError, match="closed"):
            as_outcome(raised.value, room_id="!r:x", event_id=None)
        with pytest.raises(asyncio.CancelledError):
            as_outcome(asyncio.CancelledError(), room_id="!r:x", event_id=None)

    asyncio.run(closed())
