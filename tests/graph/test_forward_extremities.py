"""Rooms with more forward extremities than anybody makes by accident."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from homeserver.graph.forward_extremities import deepest_and_longest_waiting
from homeserver.graph.state import RESOLVED_TOGETHER_MAX, Extremity, StateReader, StateSnapshot
from homeserver.protocol.events import Event
from homeserver.storage.event_graph import Verdict
from tests.fakes.servers import Servers
from tests.graph.test_receive import ALICE, EVE, Scene, play

FORKS = 60


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many states each resolution was asked to resolve."""
    counts: list[int] = []
    original = StateReader.resolve

    async def counted(
        self: StateReader, version: object, snapshots: Sequence[StateSnapshot], *rest: object
    ) -> StateSnapshot:
        counts.append(len(snapshots))
        return await original(self, version, snapshots, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(StateReader, "resolve", counted)
    return counts


async def fork(at: Scene, count: int = FORKS) -> list[Event]:
    """State events that nothing but their number tells apart, all after the same event."""
    start = at.room.send(ALICE, "start")
    await at.send(start)
    forks = [
        at.room.state_event(ALICE, "org.example.fork", {"n": n}, state_key=str(n), prev_events=[start])
        for n in range(count)
    ]
    for first in range(0, count, 50):
        results = await at.send(*forks[first : first + 50])
        assert all(result == {} for result in results.values()), results
    return forks


@pytest.mark.parametrize("version", ["1", "6", "12"])
def test_what_an_event_costs_does_not_grow_with_them(servers: Servers, resolved: list[int], version: str) -> None:
    async def story(at: Scene) -> None:
        forks = await fork(at)
        assert await at.extremities() == {event.event_id for event in forks}
        state = await at.state()
        assert all(state[event.key] == event.event_id for event in forks)
        assert max(resolved) <= RESOLVED_TOGETHER_MAX

    play(servers, story, version)


def test_our_own_events_bring_them_together_again(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        forks = await fork(at)
        while len(await at.extremities()) > 1:
            before = len(await at.extremities())
            sent = await at.ours.send(at.bob, at.room.room_id)
            assert len(await at.extremities()) < before
            assert await at.verdict((await at.ours.wait_for(sent)).event) == Verdict.ACCEPTED
        state = await at.state()
        assert all(state[event.key] == event.event_id for event in forks)

    play(servers, story)


def test_the_state_before_our_event_is_that_of_what_it_names(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        forks = {event.event_id: event for event in await fork(at)}
        stored = await at.ours.wait_for(await at.ours.send(at.bob, at.room.room_id))
        named = set(stored.event.prev_events)
        assert len(named) == RESOLVED_TOGETHER_MAX
        before = (await at.ours.get(StateReader).before(stored)).state
        assert {key[1] for key in before if key[0] == "org.example.fork"} == {forks[i].state_key for i in named}

    play(servers, story)


def test_who_joined_in_one_branch_may_speak_though_others_do_not_know(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        (join,) = await at.extremities()
        tip = next(event for event in at.room.events.values() if event.type == "m.room.power_levels")  # before bob came
        for _ in range(8):
            tip = at.room.send(ALICE, prev_events=[tip])
            await at.send(tip)
        deep = [at.room.send(ALICE, str(n), prev_events=[tip]) for n in range(40)]
        await at.send(*deep[:20])
        known = at.room.send(ALICE, "hello bob", prev_events=[join])  # neither among the deepest nor waiting for long
        await at.send(known, *deep[20:])
        head = await at.ours.head(at.room.room_id)
        by_rule = deepest_and_longest_waiting(head.extremities, RESOLVED_TOGETHER_MAX)
        assert known.event_id not in {extremity.event_id for extremity in by_rule}
        sent = await at.ours.wait_for(await at.ours.send(at.bob, at.room.room_id, "still here"))
        assert sent.visible
        assert known.event_id in sent.event.prev_events

    play(servers, story)


def test_a_ban_in_one_branch_holds_among_many(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        start = at.room.send(ALICE, "start")
        await at.send(start)
        ban = at.room.ban(ALICE, EVE, prev_events=[start])
        await at.send(ban)
        forks = [at.room.send(EVE, str(n), prev_events=[start]) for n in range(FORKS)]
        for first in range(0, FORKS, 50):
            await at.send(*forks[first : first + 50])
        assert await at.ours.membership(at.room.room_id, EVE) == "ban"
        assert {await at.verdict(event) for event in forks} == {Verdict.SOFT_FAILED}

    play(servers, story)


def test_which_are_chosen() -> None:
    extremities = [Extremity(f"${n}", n, depth, 1) for n, depth in enumerate([5, 9, 8, 7, 1, 6], start=1)]
    for seed in range(5):
        mixed = random.Random(seed).sample(extremities, len(extremities))
        assert [e.event_id for e in deepest_and_longest_waiting(mixed, 4)] == ["$2", "$3", "$4", "$1"]
        assert [e.event_id for e in deepest_and_longest_waiting(mixed, 3)] == ["$2", "$3", "$1"]
        assert len(deepest_and_longest_waiting(mixed, 10)) == 6


def test_one_that_is_being_appended_has_waited_least() -> None:
    extremities = [Extremity("$new", 0, 1, 1), Extremity("$old", 7, 1, 1), Extremity("$deep", 9, 9, 1)]
    assert [e.event_id for e in deepest_and_longest_waiting(extremities, 2)] == ["$deep", "$old"]
