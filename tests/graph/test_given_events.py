"""Events of large answers: what is not held in memory is the same as what is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from homeserver.errors import IncompleteAnswer
from homeserver.federation.large_answers import Elements, ListBound, read_large_json
from homeserver.graph import given_events, incoming_events
from homeserver.graph.given_events import GivenEvents, affordable
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.outbound.spools import Spools
from homeserver.protocol.events import Event
from homeserver.protocol.redaction import redact_event
from tests.factories.rooms import RoomFactory


class AllSigned:
    """Trusts everybody."""

    def __init__(self) -> None:
        self.parts: list[int] = []

    async def verify_events(self, events: Sequence[Event]) -> list[None]:
        self.parts.append(len(events))
        return [None] * len(events)

    async def fetch_keys_of(self, events: Any) -> None:
        assert len(list(events)) > 0

    async def keys_for(self, wanted: Any) -> Any:
        raise AssertionError


async def elements_of(pdus: Sequence[Any]) -> Elements:
    spool = Spools().new(1 << 30)
    await spool.write(json.dumps({"list": pdus}).encode())
    found = (await read_large_json(spool, {"list": ListBound(1_000_000)}))["list"]
    assert isinstance(found, Elements)
    return found


def a_room(version: str, members: int = 30) -> RoomFactory:
    room = RoomFactory(version)
    room.create()
    for number in range(members):
        room.join(f"member{number}")
    return room


@pytest.mark.parametrize("version", ["1", "11", "12"])
@pytest.mark.parametrize("held", [0, 20_000, 1 << 30])
def test_they_are_the_same_wherever_they_are(version: str, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_events, "HELD_BYTES_MAX", held)
    monkeypatch.setattr(given_events, "RECENT_BYTES_MAX", 100_000)

    async def story() -> None:
        room = a_room(version)
        altered = room.send("alice", "as it was sent")
        expected = {event.event_id: event.json for event in room.events.values()}
        expected[altered.event_id] = redact_event(altered).json
        pdus = [{**event.pdu, "unsigned": {"age": 1}, "event_id": event.event_id} for event in room.events.values()]
        pdus[-1]["content"] = {"body": "as somebody altered it"}
        verifier = AllSigned()
        incoming = IncomingEvents(verifier)
        given = GivenEvents(room.version, room.room_id)
        first = await incoming.take("other.org", given, await elements_of(pdus[:20]))
        rest = await incoming.take("other.org", given, await elements_of([*pdus[10:], {}, None]))
        assert [*first, *rest[10:]] == list(given) == list(expected)
        assert given.are_held == (held > 20_000)
        assert isinstance(given.as_plain(), dict) == given.are_held
        await incoming.verify_given(given)
        for _ in range(2):
            assert {event_id: event.json for event_id, event in given.items()} == expected
        for event in room.events.values():
            assert (given[event.event_id].room_id, given[event.event_id].event_id) == (room.room_id, event.event_id)
        given.discard(altered.event_id)
        assert altered.event_id not in given
        assert len(given) == len(expected) - 1

    asyncio.run(story())


def test_many_are_verified_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_events, "HELD_BYTES_MAX", 0)
    monkeypatch.setattr(incoming_events, "EVENTS_PER_PART", 10)

    async def story() -> None:
        room = a_room("11")
        verifier = AllSigned()
        given = GivenEvents(room.version, room.room_id)
        incoming = IncomingEvents(verifier)
        await incoming.take("other.org", given, await elements_of([event.pdu for event in room.events.values()]))
        await incoming.verify_given(given)
        assert verifier.parts == [10, 10, 10, 4]

    asyncio.run(story())


def test_an_answer_full_of_what_is_no_event_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming_events, "INVALID_EVENTS_MAX", 5)

    async def story() -> None:
        room = a_room("11")
        incoming = IncomingEvents(AllSigned())
        pdus: list[Any] = [event.pdu for event in room.events.values()]
        given = GivenEvents(room.version, room.room_id)
        await incoming.take("other.org", given, [*pdus, {}, None, 1, "a", []])
        assert len(given) == len(pdus)
        with pytest.raises(IncompleteAnswer):
            await incoming.take("other.org", given, [{}, {}, {}, {}, {}, {}, *pdus])

    asyncio.run(story())


def test_one_large_answer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming_events, "LARGE_EVENTS_MIN", 100)
    monkeypatch.setattr(incoming_events, "LARGE_WAIT_SECONDS_MAX", 0.05)

    async def story() -> None:
        incoming = IncomingEvents(AllSigned())
        async with incoming.large_turn("one.org", 100), incoming.large_turn("one.org", 99):
            for server_name in ("one.org", "two.org"):
                with pytest.raises(Exception, match="large"):
                    async with incoming.large_turn(server_name, 100):
                        pass
        async with incoming.large_turn("two.org", 100):
            pass

    asyncio.run(story())


def test_as_many_as_fit() -> None:
    async def story() -> None:
        elements = await elements_of([{"text": "a" * 1_000, "number": number} for number in range(10)])
        some = affordable(elements, 3 * 20 * 1_100)
        assert [each["number"] for each in some] == [0, 1, 2]
        assert [each["number"] for each in affordable(elements, 3 * 20 * 1_100, from_the_end=True)] == [7, 8, 9]
        assert [each["number"] for each in affordable(elements, 1, from_the_end=True)] == [9]
        assert len(affordable(elements, 1 << 30)) == len(affordable(elements, 1 << 30, from_the_end=True)) == 10

    asyncio.run(story())
