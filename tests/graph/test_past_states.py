"""The state before an event whose prev_events are missing: nobody is believed who sent it, while others can be asked.

docs/decisions/0010-missing-ancestors.md
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from homeserver.graph import silent_servers, unhelpful_servers
from homeserver.graph.past_states import ATTEMPTS_BEFORE_BELIEF, PAST_EVENTS_MAX
from homeserver.graph.placement import STATES_ASKED_MAX, Placer
from homeserver.graph.silent_servers import SilentServers
from homeserver.protocol.events import Event
from homeserver.storage.event_graph import Verdict
from tests.fakes.servers import Servers
from tests.graph.test_missing_ancestors import (
    EVIL,
    LEVELS,
    Attack,
    busy,
    try_again,
    waiting_ids,
)
from tests.graph.test_receive import ALICE, OTHER, REMOTE, Scene, play


async def prepare(at: Scene) -> Attack:
    """Mallory joins after us. Returns what she says the state was before: she a moderator, and all else as it is."""
    attack = Attack(at)
    await attack.prepare()
    attack.answers["state"] = {**at.room.state, LEVELS: attack.old[LEVELS]}
    return attack


def after_the_create_event(attack: Attack) -> Event:
    create = attack.at.room.create_event
    assert create is not None
    return attack.event([create.event_id])


def after_the_beginning(attack: Attack) -> Event:
    """An event after the second of the room, which we have without a place, since it is from before our time."""
    return attack.event([list(attack.at.room.events)[1]])


def after_what_others_reject(attack: Attack) -> Event:
    """The same with an event in between that nobody but Mallory knows, because others have rejected it."""
    return attack.event([after_the_beginning(attack).event_id])


def after_a_chain_of_those(attack: Attack) -> Event:
    event = after_the_beginning(attack)
    for number in range(4):
        event = attack.event([event.event_id], "m.room.topic", {"topic": f"mine {number}"}, "")
    return attack.event([event.event_id])


FEW = pytest.mark.parametrize("version", ["1", "6", "12"])
WAYS = pytest.mark.parametrize(
    "way", [after_the_create_event, after_the_beginning, after_what_others_reject, after_a_chain_of_those]
)


@FEW
@WAYS
def test_the_sender_is_not_believed_where_others_know_the_past(
    servers: Servers, version: str, way: Callable[[Attack], Event]
) -> None:
    async def story(at: Scene) -> None:
        attack = await prepare(at)
        event = way(attack)
        await attack.push(event)
        assert await at.verdict(event) == Verdict.REJECTED
        assert await waiting_ids(at) == set()

    play(servers, story, version)


@FEW
def test_nor_for_what_belongs_to_the_past(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        attack = await prepare(at)
        event = after_the_beginning(attack)
        await at.ours.get(Placer).place(EVIL, at.room.room_id, [event], places={event.event_id: -1})
        assert await at.verdict(event) == Verdict.REJECTED
        # What follows it is judged by the same past.
        follower = attack.event([event.event_id])
        await attack.push(follower)
        assert await at.verdict(follower) == Verdict.REJECTED

    play(servers, story, version)


@FEW
def test_a_page_of_history_is_judged_by_others_than_who_gives_it(servers: Servers, version: str) -> None:
    """Whoever gives us an event of somebody else could say that its sender was not in the room."""

    async def story(at: Scene) -> None:
        carol = f"@carol:{OTHER}"
        at.servers.remote(OTHER, at.room)
        await at.send(at.room.join(carol))
        attack = await prepare(at)
        attack.answers["state"] = {key: e for key, e in at.room.state.items() if key != ("m.room.member", carol)}
        spoken = at.room.send(carol, "long ago", prev_events=[at.room.send(ALICE, "not given")])
        await at.ours.get(Placer).place(EVIL, at.room.room_id, [spoken], places={spoken.event_id: -1})
        assert await at.verdict(spoken) == Verdict.ACCEPTED

    play(servers, story, version)


def test_it_waits_for_those_who_know(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unhelpful_servers, "PAUSE_S_MIN", 0.0)

    async def story(at: Scene) -> None:
        attack = await prepare(at)
        at.remote.replaced = {"state_ids": busy, "state": busy}
        beginning = list(at.room.events)[1]
        hidden = at.room.send(ALICE, "hidden", prev_events=[beginning])
        old = at.room.send(ALICE, "old", prev_events=[hidden])
        at.remote.hidden.add(hidden.event_id)
        del at.room.events[hidden.event_id]  # Mallory does not show it either
        event = attack.event([old.event_id])
        await attack.push(event)
        for _ in range(2):
            assert await at.verdict(event) is None
            await try_again(at)
        at.remote.replaced.clear()
        await try_again(at)
        assert await at.verdict(event) == Verdict.REJECTED
        assert await waiting_ids(at) == set()

    play(servers, story)


def test_but_not_for_ever(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only other server in the room has crashed. Its sender is believed in the end, or nobody could speak."""
    monkeypatch.setattr(unhelpful_servers, "PAUSE_S_MIN", 0.0)

    async def story(at: Scene) -> None:
        attack = await prepare(at)
        right = await at.state()
        at.remote.replaced = {"state_ids": busy, "state": busy}
        event = attack.event([attack.event([attack.invented()]).event_id])
        # To be shown without its past is not enough where others can be asked.
        await attack.push(event)
        for _ in range(ATTEMPTS_BEFORE_BELIEF + 1):
            assert await at.verdict(event) is None
            await try_again(at)
        assert await at.verdict(event) == Verdict.ACCEPTED
        assert await at.state() == right

    play(servers, story)


def test_nor_for_those_who_have_been_silent_for_long(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(at: Scene) -> None:
        attack = await prepare(at)
        silent = at.ours.get(SilentServers)
        monkeypatch.setattr(silent_servers, "GIVEN_UP_AFTER_MS", 0)
        for _ in range(silent_servers.GIVEN_UP_TIMES):
            await silent.did_not_answer(REMOTE)
        at.servers.network.sent.clear()
        event = attack.event([attack.event([attack.invented()]).event_id])
        await attack.push(event)
        assert await at.verdict(event) == Verdict.ACCEPTED
        assert not at.servers.network.requests(REMOTE, "state_ids")

    play(servers, story)


def test_so_many_questions_and_no_more(servers: Servers) -> None:
    """Whoever sends events with many invented pasts does not make us ask the others without end."""

    async def story(at: Scene) -> None:
        attack = await prepare(at)
        at.servers.network.sent.clear()
        events = []
        for _ in range(6):
            shown = [attack.event([attack.event([attack.invented()]).event_id]) for _ in range(10)]
            events.append(attack.event([event.event_id for event in shown]))
        await attack.push(*events)
        assert {await at.verdict(event) for event in events} == {None}
        asked = len(at.servers.network.requests(REMOTE, "state_ids"))
        assert asked <= PAST_EVENTS_MAX + STATES_ASKED_MAX
        # The same once more asks nothing, since Mallory has not helped.
        await attack.push(attack.event([events[0].event_id]))
        assert len(at.servers.network.requests(REMOTE, "state_ids")) == asked

    play(servers, story)
