"""homeserver/graph/unhelpful_servers.py: who does not show what its events build on is not asked again and again."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.graph import placement, unhelpful_servers
from homeserver.graph.unhelpful_servers import PAUSE_S_MAX, PAUSE_S_MIN, UnhelpfulServers
from homeserver.protocol.events import Event
from homeserver.storage.event_graph import Verdict
from tests.fakes.clock import FakeClock
from tests.fakes.servers import Servers, eventually
from tests.graph.test_receive import ALICE, EVE, OURS, REMOTE, Scene, play

ROOM = "!room:example.org"


def test_pauses_grow_and_end() -> None:
    clock = FakeClock()
    servers = UnhelpfulServers(clock)
    assert servers.may_ask(ROOM, REMOTE)
    pauses: list[float] = []
    for _ in range(12):
        servers.did_not_help(ROOM, REMOTE)
        assert servers.may_ask("!other:example.org", REMOTE)
        assert servers.may_ask(ROOM, OURS)
        began = clock.monotonic()
        while not servers.may_ask(ROOM, REMOTE):
            clock.advance(1000)
        pauses.append(clock.monotonic() - began)
    assert pauses[:3] == [PAUSE_S_MIN, 2 * PAUSE_S_MIN, 4 * PAUSE_S_MIN]
    assert pauses[-1] == PAUSE_S_MAX
    servers.helped(ROOM, REMOTE)
    servers.did_not_help(ROOM, REMOTE)
    clock.advance(int(PAUSE_S_MIN * 1000))
    assert servers.may_ask(ROOM, REMOTE)


def questions(at: Scene) -> list[str]:
    """What our server has asked the remote one, beside keys and the join."""
    names = ("get_missing_events", "/state_ids/", "/state/", "/event/", "/event_auth/")
    return [sent.path for sent in at.servers.network.requests(REMOTE) if any(name in sent.path for name in names)]


async def nothing(_: Request) -> Response:
    return JSONResponse({"errcode": "M_NOT_FOUND", "error": "?"}, 404)


def shows_nothing(at: Scene) -> None:
    for name in ("state_ids", "state", "event", "event_auth", "missing_events"):
        at.remote.replaced[name] = nothing


def with_unknown_past(at: Scene, count: int) -> tuple[Event, list[Event]]:
    """An event that follows what is here, and others each of which follows one that is shown to nobody."""
    tip = at.room.send(ALICE, "tip")
    orphans = []
    for number in range(count):
        hidden = at.room.send(ALICE, f"hidden {number}", prev_events=[tip])
        orphans.append(at.room.send(EVE, f"orphan {number}", prev_events=[hidden]))
    at.room.extremities = [tip.event_id]
    return tip, orphans


def test_a_server_that_shows_nothing_is_left_alone(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unhelpful_servers, "PAUSE_S_MIN", 60.0)

    async def story(at: Scene) -> None:
        shows_nothing(at)
        tip, orphans = with_unknown_past(at, 50)
        # What is not taken in is kept, so it is answered for like what is.
        assert await at.send(*orphans[:49], tip) == {event.event_id: {} for event in [*orphans[:49], tip]}
        assert {await at.verdict(event) for event in orphans} == {None}
        asked = questions(at)
        assert asked
        assert len(asked) <= placement.STATES_ASKED_MAX + 1
        # What comes next from there is kept too, and nobody is asked.
        assert await at.send(orphans[0], orphans[49]) == {orphans[0].event_id: {}, orphans[49].event_id: {}}
        assert await at.verdict(orphans[49]) is None
        # What lacks nothing is taken in.
        message = at.room.send(ALICE, "plain", prev_events=[tip])
        assert await at.send(message) == {message.event_id: {}}
        assert questions(at) == asked

    play(servers, story)


def test_it_is_asked_again_after_the_pause(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr("homeserver.graph.assembly.UnhelpfulServers", lambda _: UnhelpfulServers(clock), raising=True)

    async def story(at: Scene) -> None:
        shows_nothing(at)
        lost = at.room.send(ALICE, "lost")
        first, second, third = (at.room.send(EVE, str(number)) for number in range(3))
        await at.send(first)
        at.remote.replaced.clear()
        await at.send(second)
        assert await at.verdict(first) is await at.verdict(second) is None
        clock.advance(int(PAUSE_S_MIN * 1000))
        assert await at.send(third) == {third.event_id: {}}
        for event in (lost, first, second, third):
            assert await at.verdict(event) == Verdict.ACCEPTED

    play(servers, story)


@pytest.mark.parametrize("is_gap", [False, True])
def test_auth_events_that_nobody_shows(servers: Servers, monkeypatch: pytest.MonkeyPatch, is_gap: bool) -> None:
    monkeypatch.setattr(unhelpful_servers, "PAUSE_S_MIN", 60.0)

    async def story(at: Scene) -> None:
        async def no_chain(_: Request) -> Response:
            return JSONResponse({"auth_chain": []})

        at.remote.replaced["event_auth"] = no_chain
        tip = at.room.send(ALICE, "tip")
        forks = []
        for number in range(30):
            levels = at.room.set_power_levels(ALICE, prev_events=[tip], state_default=number)
            state = at.room.state_before(tip)
            cited = [levels, state["m.room.member", ALICE], state["m.room.create", ""]]
            forks.append(at.room.send(ALICE, str(number), prev_events=[tip], auth_events=cited))
        if not is_gap:
            await at.send(tip)
        await at.send(*forks)
        assert {await at.verdict(event) for event in forks} == {None}
        assert 0 < len([path for path in questions(at) if "event_auth" in path]) <= placement.AUTH_CHAINS_ASKED_MAX
        asked = questions(at)
        await at.send(forks[0])
        assert questions(at) == asked

    play(servers, story)


def test_a_server_that_cannot_be_reached_is_asked_once(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        _, orphans = with_unknown_past(at, 20)
        at.servers.network._cut.add((OURS, REMOTE))
        await at.send(*orphans)
        assert {await at.verdict(event) for event in orphans} == {None}
        assert len(questions(at)) == 2

    play(servers, story)


def test_who_waits_for_the_gap_does_not_ask_again(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unhelpful_servers, "PAUSE_S_MIN", 60.0)

    async def story(at: Scene) -> None:
        shows_nothing(at)
        _, orphans = with_unknown_past(at, 5)
        held = at.servers.network.hold(OURS, REMOTE)
        sending = asyncio.gather(*(at.send(orphan) for orphan in orphans))

        async def is_asking() -> bool:
            return bool(questions(at))

        await eventually(is_asking)
        held.set()
        await sending
        assert {await at.verdict(event) for event in orphans} == {None}
        assert len(questions(at)) == 2

    play(servers, story)
