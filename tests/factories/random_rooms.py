"""Rooms whose history forks and joins at random, and what a plain reading of the rules makes of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

from homeserver.errors import NotAuthorized
from homeserver.protocol.authorization import auth_event_keys, authorize
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.room_versions import StateResolution
from homeserver.protocol.state_resolution import conflicted_subgraph_of, resolve, split_states
from tests.factories.rooms import START_TS, RoomFactory

USERS = ["@alice:example.org", "@bob:other.org", "@carol:example.org", "@dave:third.org", "@erin:example.org"]


class RandomRoom:
    """A room that grows by events of five users on three servers. All state is worked out with everything in hand."""

    def __init__(self, version: str, seed: int, name: str) -> None:
        self.choose = random.Random(seed)
        ts = START_TS + crc32(name.encode()) % 1_000_000  # room version 12 tells rooms apart by their create events
        self.room = RoomFactory(version, "example.org", room_localpart=name, ts=ts)
        self.version = self.room.version
        self.events = self.room.events
        self.before: dict[str, Mapping[StateKey, str]] = {}
        self.after: dict[str, Mapping[StateKey, str]] = {}
        self.verdicts: dict[str, str] = {}
        self.extremities: list[str] = []
        self.current: dict[StateKey, str] = {}
        self._opening()

    def grow(self, count: int) -> list[Event]:
        """Add events, most of them allowed, each after one to three of the newest ones."""
        return [self._grow() for _ in range(count)]

    def resolve(self, event_ids: Sequence[str]) -> dict[StateKey, str]:
        """The state where the branches that end in these events meet."""
        states = [self.after[event_id] for event_id in event_ids]
        conflict = split_states(states)
        if not conflict.conflicted:
            return conflict.unconflicted
        # Other servers count a state's events among its auth chains, so that is what makes the difference.
        chains = [with_chains(self.events, state.values()) for state in states]
        is_2_1 = self.version.state_resolution is StateResolution.V2_1
        return resolve(
            self.version,
            states,
            events=self.events,
            auth_difference=set().union(*chains) - chains[0].intersection(*chains),
            conflicted_subgraph=conflicted_subgraph_of(conflict.conflicted_ids, self.events) if is_2_1 else frozenset(),
            rejected={event_id for event_id, verdict in self.verdicts.items() if verdict == "rejected"},
        )

    def joined(self) -> set[str]:
        members = (self.events[event_id] for key, event_id in self.current.items() if key[0] == "m.room.member")
        return {member.state_key or "" for member in members if member.membership == "join"}

    def _opening(self) -> None:
        alice = USERS[0]
        self._place(self.room.create(alice, bare=True))
        levels: dict[str, Any] = {"users": {alice: 100, USERS[1]: 60}, "invite": 0, "state_default": 50}
        if self.version.creators_have_infinite_power:
            del levels["users"][alice]
        self._add(alice, "m.room.member", {"membership": "join"}, alice)
        self._add(alice, "m.room.power_levels", levels, "")
        self._add(alice, "m.room.join_rules", {"join_rule": "public"}, "")
        for user in USERS[1:3]:
            self._add(user, "m.room.member", {"membership": "join"}, user)

    def _grow(self) -> Event:
        choose = self.choose
        recent = [event_id for event_id in self.after if self.verdicts[event_id] == "accepted"][-6:]
        previous = self.extremities if choose.random() < 0.3 else choose.sample(recent, choose.randint(1, 2))
        sender, target = choose.choice(USERS), choose.choice(USERS)
        levels = {"users": {USERS[1]: choose.choice([0, 40, 60]), USERS[2]: choose.choice([0, 50])}, "invite": 0}
        if not self.version.creators_have_infinite_power:
            levels["users"][USERS[0]] = 100
        event_type, content, state_key = choose.choice(
            [
                ("m.room.member", {"membership": "join"}, sender),
                ("m.room.member", {"membership": "join", "displayname": str(len(self.events))}, sender),
                ("m.room.member", {"membership": "leave"}, sender),
                ("m.room.member", {"membership": choose.choice(["ban", "leave", "invite"])}, target),
                ("m.room.power_levels", levels, ""),
                ("m.room.join_rules", {"join_rule": choose.choice(["public", "invite"])}, ""),
                ("m.room.topic", {"topic": str(len(self.events))}, ""),
                ("m.room.topic", {"topic": str(len(self.events))}, choose.choice("ab")),
                ("m.room.message", {"body": "hello"}, None),
            ]
        )
        return self._add(sender, event_type, content, state_key, list(previous))

    def _add(
        self, sender: str, event_type: str, content: Any, state_key: str | None, previous: Sequence[str] | None = None
    ) -> Event:
        prev = list(self.extremities if previous is None else previous)
        before = self.resolve(prev)
        keys = auth_event_keys(event_type, sender, state_key, content, self.version)
        event = self.room.event(
            sender,
            event_type,
            content,
            state_key,
            prev_events=prev,
            auth_events=[before[key] for key in keys if key in before],
            ts=START_TS + self.choose.randrange(50) * 1000 + len(self.events),
        )
        return self._place(event)

    def _place(self, event: Event) -> Event:
        """Work out what becomes of an event: its verdict, the state around it, and the room's state now."""
        before = self.resolve(event.prev_events) if event.prev_events else {}
        self.before[event.event_id] = before
        allowed = self._allows(event, before)
        soft_failed = allowed and not self._allows(event, self.current)
        self.verdicts[event.event_id] = "soft-failed" if soft_failed else "accepted" if allowed else "rejected"
        changes = allowed and event.is_state
        self.after[event.event_id] = {**before, event.key: event.event_id} if changes else before
        if allowed and not soft_failed:
            followed = set(event.prev_events)
            self.extremities = [i for i in self.extremities if i not in followed] + [event.event_id]
            self.current = self.resolve(self.extremities)
        return event

    def _allows(self, event: Event, state: Mapping[StateKey, str]) -> bool:
        keys = auth_event_keys(event.type, event.sender, event.state_key, event.content, event.version)
        try:
            authorize(event, {k: self.events[state[k]] for k in keys if k in state}, create=self.room.create_event)
        except NotAuthorized:
            return False
        return True


def with_chains(events: Mapping[str, Event], event_ids: Iterable[str]) -> set[str]:
    """The events themselves and all that they lead to through their auth events."""
    found, todo = set[str](), list(event_ids)
    while todo:
        event_id = todo.pop()
        if event_id not in found:
            found.add(event_id)
            todo.extend(events[event_id].auth_events)
    return found
