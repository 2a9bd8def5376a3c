"""Fetching history from before this server came, from servers that help and servers that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, func, select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.graph.missing_events import SLOW_PAUSE_SECONDS_MIN, SLOW_SECONDS_MIN, SlowServers
from homeserver.graph.state import StateReader
from homeserver.protocol.events import Event
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from homeserver.storage.integrity import find_problems
from homeserver.storage.tables import state_group_entries, state_groups
from tests.factories.rooms import ServerKey
from tests.fakes.clock import FakeClock
from tests.fakes.servers import Servers
from tests.graph.test_receive import ALICE, EVE, OTHER, OURS, REMOTE, Scene, play

VERSIONS = pytest.mark.parametrize("version", ["1", "6", "11", "12"])


async def rejoin_after(at: Scene, count: int, happen: Callable[[], None] = lambda: None) -> list[Event]:
    """Events that happen while our bob is away; then he comes back. Returns the last ones, ``count`` messages."""
    from homeserver.membership.membership import Memberships
    from tests.fakes.servers import eventually

    await at.ours.get(Memberships).leave(at.bob, at.room.room_id)

    async def left() -> list[dict]:  # type: ignore[type-arg]
        return [pdu for pdu in at.remote.got() if pdu["content"].get("membership") == "leave"]

    at.remote.take_in((await eventually(left))[0])
    happen()
    events = [at.room.send(ALICE, f"missed {number}") for number in range(count)]
    await at.ours.join(at.bob, at.room.room_id, REMOTE)
    return events


@VERSIONS
def test_all_of_history_comes_step_by_step(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        missed = await rejoin_after(at, 130)
        assert await at.ours.backfill(at.room.room_id)
        assert await at.verdict(missed[-1]) == Verdict.ACCEPTED
        assert await at.verdict(missed[0]) is None
        assert await at.ours.backfill(at.room.room_id)
        assert await at.verdict(missed[0]) == Verdict.ACCEPTED
        positions = [(await at.ours.event(event.event_id)).stream_position for event in missed]  # type: ignore[union-attr]
        assert all(position < 0 for position in positions)
        tips = await at.extremities()
        while await at.ours.backfill(at.room.room_id):
            pass
        assert await at.extremities() == tips
        assert await at.verdict(at.room.create_event) == Verdict.ACCEPTED  # type: ignore[arg-type]
        assert not await at.ours.backfill(at.room.room_id)

    play(servers, story, version)


@VERSIONS
def test_the_state_of_old_events_is_that_of_their_time(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        early = at.room.send(ALICE, "early")
        topic = at.room.state_event(ALICE, "m.room.topic", {"topic": "x"})
        late = at.room.send(ALICE, "late")
        missed = await rejoin_after(at, 2)
        while await at.ours.backfill(at.room.room_id):
            pass
        for event, expected in ((early, None), (late, topic.event_id), (missed[0], topic.event_id)):
            stored = await at.ours.event(event.event_id)
            assert stored is not None
            assert stored.state_group is not None
            found = await at.ours.get(StateReader).lookup(stored.state_group, [("m.room.topic", "")])
            assert found.get(("m.room.topic", "")) == expected

    play(servers, story, version)


def test_what_is_forged_or_forbidden_is_not_shown(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        stranger = at.room.send(f"@stranger:{REMOTE}", "let me in")
        forged = at.room.send(ALICE, "forged")
        changed = at.room.send(ALICE, "original")
        (last,) = await rejoin_after(at, 1)
        at.room.events[forged.event_id].pdu["signatures"][REMOTE] = {"ed25519:1": ServerKey(OTHER).sign(b"x")}
        at.room.events[changed.event_id].pdu["content"]["body"] = "changed"
        while await at.ours.backfill(at.room.room_id):
            pass
        assert await at.verdict(last) == Verdict.ACCEPTED
        assert await at.verdict(stranger) == Verdict.REJECTED
        assert await at.verdict(forged) is None
        stored = await at.ours.event(changed.event_id)
        assert stored is not None
        assert stored.event.content == {}

    play(servers, story)


def test_servers_that_give_nothing(servers: Servers) -> None:
    async def refuse(_: Request) -> Response:
        return JSONResponse({"errcode": "M_FORBIDDEN", "error": "no"}, 403)

    async def nothing(_: Request) -> Response:
        return JSONResponse({"pdus": [], "origin": REMOTE, "origin_server_ts": 1})

    async def nonsense(_: Request) -> Response:
        return JSONResponse({"pdus": [{}, {"room_id": "x"}]})

    async def story(at: Scene) -> None:
        await rejoin_after(at, 3)
        for answer in (refuse, nothing, nonsense):
            at.remote.replaced["backfill"] = answer
            assert not await at.ours.backfill(at.room.room_id)
        at.servers.network.split(OURS, REMOTE)
        assert not await at.ours.backfill(at.room.room_id)
        assert not await at.ours.backfill("!unknown:x")

    play(servers, story)


def test_history_without_the_state_stays_outside(servers: Servers) -> None:
    async def refuse(_: Request) -> Response:
        return JSONResponse({"errcode": "M_NOT_FOUND", "error": "no"}, 404)

    async def story(at: Scene) -> None:
        missed = await rejoin_after(at, 3)
        at.remote.hidden = {missed[0].event_id}
        at.remote.replaced["state_ids"] = refuse
        await at.ours.backfill(at.room.room_id)
        assert await at.verdict(missed[2]) is None

    play(servers, story)


def test_events_of_a_member_who_left_are_right_for_their_time(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        spoken = at.room.send(EVE, "while in the room")
        at.room.leave(EVE)
        (last,) = await rejoin_after(at, 1)
        while await at.ours.backfill(at.room.room_id):
            pass
        assert await at.verdict(spoken) == Verdict.ACCEPTED
        assert await at.verdict(last) == Verdict.ACCEPTED

    play(servers, story)


def test_pauses_of_slow_servers_grow_by_gap_and_end() -> None:
    clock = FakeClock()
    slow = SlowServers(clock)
    slow.failed("fast.org", ["$a"], SLOW_SECONDS_MIN / 2)
    assert slow.is_to_be_asked("fast.org", ["$a"]), "nobody has waited for it"
    for pause in (SLOW_PAUSE_SECONDS_MIN, 2 * SLOW_PAUSE_SECONDS_MIN, 4 * SLOW_PAUSE_SECONDS_MIN):
        slow.failed("slow.org", ["$a"], SLOW_SECONDS_MIN)
        assert not slow.is_to_be_asked("slow.org", ["$a"])
        assert not slow.is_to_be_asked("slow.org", ["$b"]), "nor about another gap just now"
        clock.advance(int(1000 * pause) - 1)
        assert slow.is_to_be_asked("slow.org", ["$b"]) == (pause > SLOW_PAUSE_SECONDS_MIN)
        assert not slow.is_to_be_asked("slow.org", ["$a"])
        clock.advance(1)
        assert slow.is_to_be_asked("slow.org", ["$a"])


def test_an_old_state_is_stored_by_what_differs_from_the_next_one(servers: Servers) -> None:
    """In a room that has grown, it would else be stored by all who have come since, once for each page."""

    async def story(at: Scene) -> None:
        def come_and_talk(count: int) -> None:
            for number in range(count):
                at.room.join(f"@user{number}:{REMOTE}")
                at.room.send(ALICE, f"welcome, {number}")

        def largest(connection: Connection) -> int:
            group = state_group_entries.c.state_group
            sizes = (
                select(func.count().label("size"))
                .join_from(state_group_entries, state_groups, state_groups.c.state_group == group)
                .where(state_groups.c.parent.is_not(None))
                .group_by(group)
                .subquery()
            )
            return connection.execute(select(func.max(sizes.c.size))).scalar_one() or 0

        await rejoin_after(at, 1, lambda: come_and_talk(250))
        before = await at.ours.get(Database).read(largest)
        while await at.ours.backfill(at.room.room_id):
            pass
        first = next(e for e in at.room.events.values() if e.content.get("body") == "welcome, 0")
        assert await at.verdict(first) == Verdict.ACCEPTED
        assert await at.ours.get(Database).read(largest) <= max(before, 120)
        assert await at.ours.get(Database).read(find_problems) == []
        stored = await at.ours.wait_for(first.event_id)
        assert stored.state_group is not None
        state = (await at.ours.get(StateReader).snapshot(stored.state_group)).state
        assert dict(state) == {key: event.event_id for key, event in at.room.state_after(first).items()}

    play(servers, story)
