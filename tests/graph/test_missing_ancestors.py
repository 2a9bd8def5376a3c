"""Events whose ancestors cannot be had: nobody moves a room's state by hiding what came before.

docs/decisions/0010-missing-ancestors.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, update
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.graph import past_states, unhelpful_servers
from homeserver.graph import waiting_events as graph_waiting_events
from homeserver.graph.placement import Placer
from homeserver.graph.state import RoomHeads, StateReader
from homeserver.graph.waiting_events import WaitingEvents
from homeserver.membership.membership import Memberships
from homeserver.protocol.compose import compose_event
from homeserver.protocol.events import Event, EventDraft, StateKey
from homeserver.storage import waiting_events as store
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from homeserver.storage.tables import waiting_events
from tests.factories.rooms import START_TS, RoomFactory, server_key
from tests.fakes.servers import Servers, eventually
from tests.graph.test_receive import (
    ALICE,
    EVE,
    OTHER,
    OURS,
    REMOTE,
    VERSIONS,
    Scene,
    no_events,
    play,
    show_nothing,
)

EVIL = "evil.test:8448"
MALLORY, FRIEND = f"@mallory:{EVIL}", f"@friend:{EVIL}"
CREATE, LEVELS, RULES, TOPIC = (
    ("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", ""), ("m.room.topic", ""),
)  # fmt: skip
ATTACKED = pytest.mark.parametrize("version", ["1", "2", "6", "10", "11", "12"])
State = Mapping[StateKey, Event]


class Attack:
    """A member's server that signs what it likes and answers what it likes.

    Mallory was a moderator and is none any more, her friend is banned, and the room is no longer public.
    """

    def __init__(self, at: Scene) -> None:
        self.at = at
        self.evil = at.servers.remote(EVIL, at.room)
        self.made: dict[str, Event] = {}
        self.answers: dict[str, Any] = {"missing": [], "state": {}}
        self.old: State = {}
        self.evil.replaced = {
            "missing_events": self._missing_events, "state_ids": self._state_ids, "state": self._state,
            "event": self._event, "event_auth": self._event_auth, "backfill": self._nothing,
        }  # fmt: skip

    async def prepare(self) -> None:
        room = self.at.room
        story = [room.join(MALLORY), room.join(FRIEND), room.set_power_levels(ALICE, {MALLORY: 60})]
        story.append(room.state_event(ALICE, "m.room.topic", {"topic": "old"}))
        self.old = room.state
        story += [
            room.ban(ALICE, FRIEND), room.state_event(ALICE, "m.room.join_rules", {"join_rule": "invite"}),
            room.set_power_levels(ALICE, {MALLORY: 0}), room.state_event(ALICE, "m.room.topic", {"topic": "new"}),
        ]  # fmt: skip
        story.append(room.send(ALICE, "all is well"))
        assert await self.at.send(*story) == {event.event_id: {} for event in story}

    def event(
        self,
        prev_events: Sequence[str],
        kind: str = "m.room.message",
        content: Mapping[str, Any] | None = None,
        state_key: str | None = None,
        *,
        cites: Iterable[StateKey] = (CREATE, LEVELS, ("m.room.member", MALLORY)),
        depth: int = 1000,
    ) -> Event:
        """An event of Mallory's, by the old state, that nobody else has heard of."""
        room, number = self.at.room, len(self.made)
        wanted = [key for key in cites if key != CREATE or not room.version.room_id_is_create_hash]
        event = compose_event(
            EventDraft(kind, MALLORY, dict(content or {"msgtype": "m.text", "body": f"{number}"}), state_key),
            room.version,
            room_id=room.room_id,
            prev_events=[(event_id, "x" * 43) for event_id in prev_events],
            auth_events=room._references([self.old[key].event_id for key in wanted]),
            depth=depth,
            origin_server_ts=START_TS + number,
            signer=server_key(EVIL),
            event_id_localpart=f"made{number}",
        )
        self.made[event.event_id] = event
        return event

    def invented(self) -> str:
        """The ID of an event that does not exist."""
        number = len(self.made)
        return f"${number:043}" if not self.at.room.version.references_with_hashes else f"$invented{number}:{EVIL}"

    async def push(self, *events: Event) -> None:
        await self.evil.transaction(OURS, events)

    # -- answering

    def _named(self, event_id: str) -> Event | None:
        return self.made.get(event_id) or self.at.room.events.get(event_id)

    def _chain(self, events: Iterable[Event]) -> list[Event]:
        found: dict[str, Event] = {}
        todo = [name for event in events for name in event.auth_events]
        while todo:
            event = self._named(todo.pop())
            if event is not None and event.event_id not in found:
                found[event.event_id] = event
                todo.extend(event.auth_events)
        return list(found.values())

    async def _nothing(self, _: Request) -> Response:
        return JSONResponse({"errcode": "M_NOT_FOUND", "error": "?"}, 404)

    async def _missing_events(self, _: Request) -> Response:
        return JSONResponse({"events": [event.pdu for event in self.answers["missing"]]})

    async def _state_ids(self, _: Request) -> Response:
        state = self.answers["state"].values()
        chain = self._chain(state)
        return JSONResponse({"pdu_ids": [e.event_id for e in state], "auth_chain_ids": [e.event_id for e in chain]})

    async def _state(self, _: Request) -> Response:
        state = self.answers["state"].values()
        return JSONResponse({"pdus": [e.pdu for e in state], "auth_chain": [e.pdu for e in self._chain(state)]})

    async def _event(self, request: Request) -> Response:
        event = self._named(request.path_params["event_id"])
        return await self._nothing(request) if event is None else JSONResponse({"pdus": [event.pdu]})

    async def _event_auth(self, request: Request) -> Response:
        event = self._named(request.path_params["event_id"])
        return JSONResponse({"auth_chain": [e.pdu for e in self._chain([event] if event else [])]})


def rolled_back(attack: Attack) -> State:
    """The state as it was before everything that Mallory does not like."""
    return attack.old


def without_rules(attack: Attack) -> State:
    """A state in which much has never been."""
    kept = {CREATE, ("m.room.member", ALICE), ("m.room.member", MALLORY), ("m.room.member", attack.at.bob)}
    return {key: event for key, event in attack.at.room.state.items() if key in kept}


def made_up(attack: Attack) -> State:
    """A state with power levels that Mallory gave herself, as if the room had none before."""
    mine = ("m.room.member", MALLORY)
    levels = attack.event(
        [attack.invented()], "m.room.power_levels", {"users": {MALLORY: 100}}, "", cites=(CREATE, mine), depth=1
    )
    topic = attack.event([attack.invented()], "m.room.topic", {"topic": "mine"}, "", cites=(CREATE, mine), depth=1)
    name = attack.event([attack.invented()], "m.room.name", {"name": "mine"}, "", cites=(CREATE, mine), depth=1)
    return {**attack.old, LEVELS: levels, TOPIC: topic, ("m.room.name", ""): name}


def made_by_old_power(attack: Attack) -> State:
    """A state with what Mallory might have done while she was a moderator."""
    topic = attack.event([attack.invented()], "m.room.topic", {"topic": "mine"}, "", depth=1)
    rules = attack.event([attack.invented()], "m.room.join_rules", {"join_rule": "public"}, "", depth=1)
    return {**attack.old, TOPIC: topic, RULES: rules}


def beside_ours(attack: Attack, tip: str) -> list[Event]:
    return [attack.event([tip, attack.invented()])]


def from_nowhere(attack: Attack, tip: str) -> list[Event]:
    return [attack.event([attack.invented()])]


def in_a_row(attack: Attack, tip: str) -> list[Event]:
    events = beside_ours(attack, tip)
    for _ in range(3):
        events.append(attack.event([events[-1].event_id]))
    return events


def by_a_chain_of_its_own(attack: Attack, tip: str) -> list[Event]:
    """All that is asked for is there, as far as anybody asks."""
    chain = [attack.event([attack.invented()])]
    for _ in range(5):
        chain.append(attack.event([chain[-1].event_id]))
    attack.answers["missing"] = list(reversed(chain))
    return [attack.event([tip, chain[-1].event_id])]


def by_an_event_that_is_shown_alone(attack: Attack, tip: str) -> list[Event]:
    return [attack.event([tip, attack.event([attack.invented()]).event_id])]


def as_state(attack: Attack, tip: str) -> list[Event]:
    shown = attack.event([attack.invented()])
    before = [tip, shown.event_id]
    return [
        attack.event(before, "m.room.topic", {"topic": "pushed"}, ""),
        attack.event(before, "m.room.join_rules", {"join_rule": "public"}, ""),
        attack.event(before, "m.room.power_levels", {"users": {MALLORY: 100}}, ""),
        attack.event([attack.invented()], "m.room.power_levels", {"users": {MALLORY: 100}}, "", depth=1),
    ]


@pytest.fixture
def nobody_else_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no server but the attacker's had answered for long. What others answer is for test_past_states."""
    monkeypatch.setattr(past_states, "independent_servers", lambda *_: [])


NOBODY_ELSE_KNOWS = pytest.mark.usefixtures("nobody_else_knows")
WAYS = (
    beside_ours, from_nowhere, in_a_row, by_a_chain_of_its_own, by_an_event_that_is_shown_alone, as_state,
)  # fmt: skip


@ATTACKED
@NOBODY_ELSE_KNOWS
@pytest.mark.parametrize("lie", [rolled_back, without_rules, made_up, made_by_old_power])
def test_nobody_moves_the_state_by_hiding_what_came_before(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, version: str, lie: Callable[[Attack], State]
) -> None:
    monkeypatch.setattr(unhelpful_servers, "PAUSE_S_MIN", 0.0)

    async def story(at: Scene) -> None:
        attack = Attack(at)
        await attack.prepare()
        right = await at.state()
        attack.answers["state"] = lie(attack)
        for way in WAYS:
            attack.answers["missing"] = []
            tip = await at.ours.send(at.bob, at.room.room_id, "what the attack builds on")
            await attack.push(*way(attack, tip))
            assert await at.state() == right, way.__name__
        # The attacks that could be judged were: the state held though they stand in the graph.
        assert any([await at.ours.event(event_id) for event_id in attack.made])

    play(servers, story, version)


@ATTACKED
@NOBODY_ELSE_KNOWS
def test_nor_by_lying_about_what_comes_late(servers: Servers, version: str) -> None:
    """A ban has not come here yet. An event that follows it does, with a state from before the ban."""

    async def story(at: Scene) -> None:
        attack = Attack(at)
        await attack.prepare()
        attack.answers["state"] = dict(at.room.state)
        show_nothing(at.remote)
        ban = at.room.ban(ALICE, EVE)
        follower = attack.event([ban.event_id])
        await attack.push(follower)
        assert await at.verdict(follower) == Verdict.ACCEPTED
        assert await at.send(ban) == {ban.event_id: {}}
        assert (await at.state())["m.room.member", EVE] == ban.event_id

    play(servers, story, version)


@ATTACKED
@NOBODY_ELSE_KNOWS
@pytest.mark.parametrize("first", ["the event that leads to the ban", "the ban"])
@pytest.mark.parametrize("is_shown", [True, False], ids=["with its past", "without its past"])
def test_nor_if_it_comes_late_piece_by_piece(servers: Servers, version: str, first: str, is_shown: bool) -> None:
    """A ban and what stands between it and an event that is here come one by one, perhaps never the whole chain."""

    async def story(at: Scene) -> None:
        attack = Attack(at)
        await attack.prepare()
        attack.answers["state"] = dict(at.room.state)
        before = at.room.send(ALICE, "before the ban")
        ban = at.room.ban(ALICE, EVE)
        between = at.room.send(ALICE, "after the ban")
        follower = attack.event([between.event_id])
        at.remote.replaced["missing_events"] = at.remote.replaced["backfill"] = no_events
        at.remote.hidden = {before.event_id}
        await attack.push(follower)
        assert await at.verdict(follower) == Verdict.ACCEPTED
        pieces = [between, ban] if first == "the event that leads to the ban" else [ban, between]
        if is_shown:
            at.remote.hidden = set()
        for piece in pieces:
            assert await at.send(piece) == {piece.event_id: {}}
        if is_shown:
            assert await at.send(before) == {before.event_id: {}}
        for piece in pieces:
            assert await at.ours.wait_for(piece.event_id)
        assert (await at.state())["m.room.member", EVE] == ban.event_id
        # A process that has just started sees the same.
        kept = await at.ours.head(at.room.room_id)
        at.ours.get(RoomHeads).forget(at.room.room_id)
        read = await at.ours.head(at.room.room_id)
        assert {(e.event_id, e.is_late) for e in read.extremities} == {
            (e.event_id, e.is_late) for e in kept.extremities
        }
        assert any(extremity.is_late for extremity in read.extremities)
        # Those who only know the follower build on it: the ban holds there too.
        later = attack.event([follower.event_id])
        await attack.push(later)
        assert (await at.state())["m.room.member", EVE] == ban.event_id
        stored = await at.ours.wait_for(later.event_id)
        assert stored.state_group is not None
        found = await at.ours.get(StateReader).lookup(stored.state_group, [("m.room.member", EVE)])
        assert found["m.room.member", EVE] == ban.event_id
        # Our own events do not name what perhaps nobody else can connect.
        message = await at.ours.wait_for(await at.ours.send(at.bob, at.room.room_id))
        assert not {piece.event_id for piece in pieces}.intersection(message.event.prev_events)
        assert (await at.state())["m.room.member", EVE] == ban.event_id
        assert await at.extremities() == {message.event_id}

    play(servers, story, version)


@ATTACKED
@NOBODY_ELSE_KNOWS
@pytest.mark.parametrize("lie", [rolled_back, without_rules, made_up, made_by_old_power])
def test_nor_by_sending_late_what_an_event_here_follows(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, version: str, lie: Callable[[Attack], State]
) -> None:
    """First comes an event that names another one, then that one, whose own past nobody shows."""
    monkeypatch.setattr(unhelpful_servers, "PAUSE_S_MIN", 0.0)

    async def story(at: Scene) -> None:
        attack = Attack(at)
        await attack.prepare()
        right = await at.state()
        attack.answers["state"] = lie(attack)
        tip = await at.ours.send(at.bob, at.room.room_id, "what the attack builds on")
        for kind, content in (
            ("m.room.message", None),
            ("m.room.topic", {"topic": "late"}),
            ("m.room.join_rules", {"join_rule": "public"}),
            ("m.room.power_levels", {"users": {MALLORY: 100}}),
        ):
            late = attack.event([attack.invented()], kind, content, None if content is None else "", depth=1)
            follower = attack.event([tip, late.event_id])
            await attack.push(follower)
            assert await at.verdict(follower) == Verdict.ACCEPTED
            await attack.push(late)
            assert await at.verdict(late) is not None
            assert await at.state() == right, kind
            await attack.push(attack.event([follower.event_id]))
            assert await at.state() == right, kind

    play(servers, story, version)


@ATTACKED
@NOBODY_ELSE_KNOWS
@pytest.mark.parametrize("lie", [without_rules, made_up, made_by_old_power])
def test_nor_by_what_is_given_of_the_past(servers: Servers, version: str, lie: Callable[[Attack], State]) -> None:
    """An event from before our time is judged by the state that is given with it; then the attacker builds on it."""

    async def story(at: Scene) -> None:
        attack = Attack(at)
        await attack.prepare()
        right = await at.state()
        attack.answers["state"] = lie(attack)
        past = attack.event([attack.invented()])
        await at.ours.get(Placer).place(EVIL, at.room.room_id, [past], places={past.event_id: -1})
        tip = await at.ours.send(at.bob, at.room.room_id, "what the attack builds on")
        await attack.push(attack.event([past.event_id]), attack.event([tip, past.event_id]))
        assert await at.state() == right

    play(servers, story, version)


@ATTACKED
def test_what_nobody_can_show_is_not_built_on(servers: Servers, version: str) -> None:
    async def story(at: Scene) -> None:
        attack = Attack(at)
        await attack.prepare()
        attack.answers["state"] = attack.old
        before = await at.extremities()
        for events in (beside_ours(attack, *before), from_nowhere(attack, *before)):
            results = await attack.evil.transaction(OURS, events)
            assert results == {event.event_id: {} for event in events}
            assert await at.extremities() == before
            assert {await at.verdict(event) for event in events} == {None}
        message = await at.ours.wait_for(await at.ours.send(at.bob, at.room.room_id))
        assert set(message.event.prev_events) == before

    play(servers, story, version)


# -- answers that are not whole ----------------------------------------------------------------------------------------


async def busy(_: Request) -> Response:
    return JSONResponse({"errcode": "M_UNKNOWN", "error": "busy"}, 502)


def busy_for(at: Scene, *events: Event) -> None:
    """The server gives none of these events by itself, for now."""

    async def event(request: Request) -> Response:
        if request.path_params["event_id"] in {event.event_id for event in events}:
            return await busy(request)
        return await at.remote._event(request)

    at.remote.replaced["event"] = event


async def try_again(at: Scene) -> None:
    """Have everything that waits tried again now."""
    waiting = at.ours.get(WaitingEvents)
    await waiting.stop()  # so that nobody else takes them

    def due(connection: Connection) -> None:
        connection.execute(update(waiting_events).values(retry_at_ts=0))

    await at.ours.get(Database).write(due)
    await waiting.work()


@VERSIONS
def test_no_verdict_rests_on_a_part_of_the_state(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Eve may set the topic by power levels that cannot be had while her event is looked at."""
    monkeypatch.setattr(unhelpful_servers, "PAUSE_S_MIN", 0.0)

    async def story(at: Scene) -> None:
        at.remote.replaced["missing_events"] = no_events
        levels = at.room.set_power_levels(ALICE, {EVE: 60})
        at.room.state_event(EVE, "m.room.topic", {"topic": "first"})
        at.room.send(ALICE, "between")
        topic = at.room.state_event(EVE, "m.room.topic", {"topic": "second"})
        for answers in ({"event": busy}, {"state_ids": busy}, {"state_ids": no_events}):
            at.remote.replaced.update(answers)
            assert await at.send(topic) == {topic.event_id: {}}
            await try_again(at)
            assert await at.verdict(topic) is None
            for name in answers:
                del at.remote.replaced[name]
        busy_for(at, levels)
        await try_again(at)
        assert await at.verdict(topic) is None
        busy_for(at)
        await try_again(at)
        assert await at.verdict(topic) == Verdict.ACCEPTED
        assert (await at.state())["m.room.topic", ""] == topic.event_id
        assert await waiting_ids(at) == set()

    play(servers, story, version)


def test_what_cannot_be_verified_is_left_out_in_the_end(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state holds an event of a server whose keys nobody has: at first that may pass, after long it will not."""
    monkeypatch.setattr(unhelpful_servers, "PAUSE_S_MIN", 0.0)

    async def story(at: Scene) -> None:
        at.remote.replaced["missing_events"] = no_events
        gone = at.room.join("@zoe:gone.test:8448")
        at.room.send(ALICE, "lost")
        message = at.room.send(EVE, "last")
        await at.send(message)
        await try_again(at)
        assert await at.verdict(message) is None
        monkeypatch.setattr(graph_waiting_events, "PATIENT_ATTEMPTS", 1)
        # What is not given at all is waited for all the same.
        busy_for(at, gone)
        await try_again(at)
        assert await at.verdict(message) is None
        busy_for(at)
        await try_again(at)
        assert await at.verdict(message) == Verdict.ACCEPTED
        assert gone.key not in await at.state()

    play(servers, story)


@pytest.mark.parametrize("fault", ["lacks the create event", "two events for a key", "no state", "of another room"])
def test_what_is_no_state_of_the_room_is_no_answer(servers: Servers, fault: str) -> None:
    async def story(at: Scene) -> None:
        at.remote.replaced["missing_events"] = no_events
        at.room.send(ALICE, "lost")
        message = at.room.send(EVE, "last")
        state = {key: event.event_id for key, event in at.room.state.items()}
        ids = list(state.values())
        if fault == "lacks the create event":
            ids.remove(state[CREATE])
        elif fault == "two events for a key":
            ids.append(at.room.state_event(ALICE, "m.room.join_rules", {"join_rule": "knock"}).event_id)
        elif fault == "no state":
            ids.append(at.room.send(ALICE, "no state").event_id)
        else:
            other = RoomFactory("11", REMOTE, room_localpart="other")
            ids.append(other.create("alice").event_id)
            at.room.events.update(other.events)

        async def state_ids(_: Request) -> Response:
            return JSONResponse({"pdu_ids": ids, "auth_chain_ids": []})

        at.remote.replaced["state_ids"] = state_ids
        assert await at.send(message) == {message.event_id: {}}
        assert await at.verdict(message) is None
        assert await waiting_ids(at) == {message.event_id}

    play(servers, story)


def test_another_server_helps_where_the_origin_does_not(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        carol = f"@carol:{OTHER}"
        other = at.servers.remote(OTHER, at.room)
        await at.send(at.room.join(carol))
        lost = at.room.state_event(ALICE, "m.room.topic", {"topic": "lost"})
        message = at.room.send(EVE, "last")
        show_nothing(at.remote)
        assert await at.send(message) == {message.event_id: {}}
        assert await at.verdict(message) == await at.verdict(lost) == Verdict.ACCEPTED
        assert at.servers.network.requests(OTHER)
        # Where it knows no more than a part of it, the rest is asked of those who do.
        at.room.state_event(ALICE, "m.room.topic", {"topic": "lost too"})
        message = at.room.send(EVE, "last")
        other.replaced = {"backfill": busy, "state": busy}
        assert await at.send(message) == {message.event_id: {}}
        assert await at.verdict(message) == Verdict.ACCEPTED

    play(servers, story)


# -- waiting -----------------------------------------------------------------------------------------------------------


async def waiting_ids(at: Scene) -> set[str]:
    return {event_id for _, event_id, _ in await at.ours.get(Database).read(store.all_lacking)}


async def unless_waiting(at: Scene, *events: Event) -> bool:
    return not {event.event_id for event in events} & await waiting_ids(at)


def test_it_finds_its_place_when_what_it_lacks_arrives(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        show_nothing(at.remote)
        tip = at.room.send(ALICE, "tip")
        lost = at.room.send(ALICE, "lost")
        first, second = at.room.send(EVE, "first"), at.room.send(EVE, "second")
        await at.send(tip)
        await at.send(second, first)
        assert await waiting_ids(at) == {first.event_id, second.event_id}
        assert await at.extremities() == {tip.event_id}
        await at.send(lost)
        for event in (first, second):
            assert (await at.ours.wait_for(event.event_id)).visible
        await eventually(lambda: unless_waiting(at, first, second))
        assert await at.extremities() == {second.event_id}

    play(servers, story)


def test_it_finds_its_place_below_what_follows_it(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an event builds on need not be shown once others have built on the event."""
    monkeypatch.setattr(unhelpful_servers, "PAUSE_S_MIN", 0.0)

    async def story(at: Scene) -> None:
        at.remote.replaced["missing_events"] = no_events
        lost = at.room.send(ALICE, "lost")
        orphan = at.room.send(EVE, "orphan")
        at.remote.hidden = {lost.event_id}
        await at.send(orphan)
        assert await at.verdict(orphan) is None
        after = at.room.send(ALICE, "after")
        assert await at.send(after) == {after.event_id: {}}
        assert await at.verdict(after) == Verdict.ACCEPTED
        await at.ours.wait_for(orphan.event_id)
        assert await at.verdict(orphan) == Verdict.ACCEPTED
        assert after.event_id in await at.extremities()
        assert orphan.event_id not in await at.extremities()

    play(servers, story)


def test_it_waits_through_a_restart(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            room = RoomFactory("11", REMOTE)
            room.create("alice")
            remote = servers.remote(REMOTE, room)
            async with servers.running(OURS) as ours:
                bob = await ours.user("bob")
                await ours.join(bob, room.room_id, REMOTE)
                room.send("alice", "lost")
                message = room.send("alice", "last")
                show_nothing(remote)
                assert await remote.transaction(OURS, [message]) == {message.event_id: {}}
            remote.replaced.clear()
            async with servers.running(OURS) as ours:
                await try_again(Scene(servers, ours, remote, room, bob))
                assert (await ours.wait_for(message.event_id)).visible

    asyncio.run(story())


def test_only_so_many_wait_for_each_server(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_waiting_events, "EVENTS_OF_ORIGIN_MAX", 3)

    async def story(at: Scene) -> None:
        show_nothing(at.remote)
        tip = at.room.send(ALICE, "tip")
        orphans = []
        for number in range(5):
            hidden = at.room.send(ALICE, f"hidden {number}", prev_events=[tip])
            orphans.append(at.room.send(EVE, f"orphan {number}", prev_events=[hidden]))
        results = await at.send(*orphans)
        assert len([result for result in results.values() if "missing" in result.get("error", "")]) == 2
        assert await waiting_ids(at) == {event_id for event_id, result in results.items() if result == {}}
        # To send them again changes nothing.
        assert await at.send(*orphans) == results

    play(servers, story)


def test_strangers_cannot_make_us_ask_members_nor_use_up_the_space(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_waiting_events, "EVENTS_OF_ORIGIN_MAX", 3)
    monkeypatch.setattr(graph_waiting_events, "EVENTS_OF_ROOM_MAX", 6)

    async def story(at: Scene) -> None:
        """Servers that are not in the room send junk; then a member sends an event that has to wait."""
        show_nothing(at.remote)
        network = at.servers.network
        network.sent.clear()
        for number in range(4):
            stranger = at.servers.remote(f"stranger{number}.test:8448", at.room)
            show_nothing(stranger)
            user = f"@eve:{stranger.name}"
            lost = at.room.send(ALICE, "lost")
            junk = [at.room.send(user, f"junk {n}", prev_events=[lost], depth=99) for n in range(3)]
            results = await stranger.transaction(OURS, junk)
            assert {} in results.values() if number == 0 else {} not in results.values()
            assert network.requests(stranger.name, "get_missing_events")
        assert not network.requests(REMOTE, "/_matrix/federation/")
        orphan = at.room.send(EVE, "orphan", prev_events=[at.room.send(ALICE, "not shown")])
        assert await at.send(orphan) == {orphan.event_id: {}}
        assert orphan.event_id in await waiting_ids(at)
        assert len(await waiting_ids(at)) == 4

    play(servers, story)


def test_it_does_not_wait_for_ever(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(at: Scene) -> None:
        show_nothing(at.remote)
        at.room.send(ALICE, "lost")
        message = at.room.send(EVE, "last")
        await at.send(message)
        await try_again(at)
        assert await waiting_ids(at) == {message.event_id}
        monkeypatch.setattr(graph_waiting_events, "GIVE_UP_AFTER_MS", -1)
        await try_again(at)
        assert await waiting_ids(at) == set()

    play(servers, story)


def test_after_we_left_nothing_waits_any_more(servers: Servers) -> None:
    async def story(at: Scene) -> None:
        show_nothing(at.remote)
        at.room.send(ALICE, "lost")
        await at.send(at.room.send(EVE, "last"))
        assert await waiting_ids(at)
        await at.ours.get(Memberships).leave(at.bob, at.room.room_id)
        await try_again(at)
        assert await waiting_ids(at) == set()

    play(servers, story)


# -- where the past begins ---------------------------------------------------------------------------------------------


def test_whoever_makes_deep_events_does_not_make_the_past(servers: Servers) -> None:
    """An event that claims the greatest depth leaves a gap; what comes after it is no less new."""

    async def story(at: Scene) -> None:
        while await at.ours.backfill(at.room.room_id):
            pass
        hidden = at.room.send(EVE, "hidden")
        deep = at.room.send(EVE, "deep", depth=2**53 - 1)
        at.remote.replaced["missing_events"] = no_events
        await at.send(deep)
        assert await at.verdict(deep) == Verdict.ACCEPTED
        assert await at.verdict(hidden) is None
        at.remote.replaced.clear()
        between = at.room.send(ALICE, "between", prev_events=[deep], depth=20)
        last = at.room.send(ALICE, "last", depth=21)
        assert await at.send(last) == {last.event_id: {}}
        assert await at.verdict(between) == Verdict.ACCEPTED

    play(servers, story)
