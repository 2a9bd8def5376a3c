"""An event graph of one room with symbolic IDs: who says what, after which events, and the state that follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from homeserver.errors import NotAuthorized
from homeserver.protocol.authorization import auth_event_keys, authorize, check_auth_events
from homeserver.protocol.events import Event, StateKey, StateMap
from homeserver.protocol.room_versions import RoomVersion
from homeserver.protocol.state_resolution import resolve_with_events
from tests.protocol.symbolic import ALICE, create_event, event

EMPTY: Mapping[str, Any] = {}


class RoomGraph:
    """A room that grows. Every event must be allowed by its auth events and by the state before it."""

    def __init__(self, version: RoomVersion, **create: Any) -> None:
        self.version = version
        self.create = create_event(version, ALICE, **create)
        self.events: dict[str, Event] = {self.create.event_id: self.create}
        self.after: dict[str, StateMap] = {self.create.event_id: {self.create.key: self.create.event_id}}
        self.last = self.create.event_id

    def state_before(self, prev: Sequence[str]) -> StateMap:
        return self.resolve(*prev)

    def resolve(self, *event_ids: str) -> dict[StateKey, str]:
        """The resolution of the states after these events."""
        return resolve_with_events(self.version, [self.after[event_id] for event_id in event_ids], self.events)

    def add(
        self,
        name: str,
        event_type: str,
        sender: str,
        content: Mapping[str, Any] = EMPTY,
        state_key: str | None = "",
        *,
        prev: str | Iterable[str] | None = None,
        ts: int | None = None,
    ) -> str:
        """Append an event after ``prev`` (or after the last one). Raises ``NotAuthorized``."""
        after = [self.last] if prev is None else [prev] if isinstance(prev, str) else list(prev)
        before = self.state_before(after)
        keys = auth_event_keys(event_type, sender, state_key, dict(content), self.version)
        added = event(
            self.version,
            event_type,
            sender,
            content,
            state_key=state_key,
            event_id=name if name.startswith("$") else f"${name}",
            prev=after,
            auth=[before[key] for key in keys if key in before],
            ts=len(self.events) if ts is None else ts,
            depth=1 + max(self.events[event_id].depth for event_id in after),
        )
        self.judge(added, before)
        self.events[added.event_id] = added
        self.after[added.event_id] = before if state_key is None else {**before, added.key: added.event_id}
        self.last = added.event_id
        return added.event_id

    def judge(self, added: Event, before: StateMap) -> None:
        cited = [self.events[event_id] for event_id in added.auth_events]
        check_auth_events(added, cited, frozenset(), create=self.create)
        authorize(added, {one.key: one for one in cited}, create=self.create)
        authorize(added, {key: self.events[event_id] for key, event_id in before.items()})

    def try_add(self, *arguments: Any, **options: Any) -> bool:
        """Append an event if it is allowed."""
        try:
            self.add(*arguments, **options)
        except NotAuthorized:
            return False
        return True

    # -- short names for what happens in rooms

    def member(self, name: str, user_id: str, membership: str, by: str | None = None, **options: Any) -> str:
        return self.add(name, "m.room.member", by or user_id, {"membership": membership}, user_id, **options)

    def levels(self, name: str, by: str, users: Mapping[str, int], **options: Any) -> str:
        more = options.pop("content", {})
        return self.add(name, "m.room.power_levels", by, {"users": dict(users), **more}, **options)

    def join_rule(self, name: str, by: str, rule: str, **options: Any) -> str:
        return self.add(name, "m.room.join_rules", by, {"join_rule": rule}, **options)

    def topic(self, name: str, by: str, **options: Any) -> str:
        return self.add(name, "m.room.topic", by, {"topic": name}, **options)

    def name_of(self, state: StateMap, event_type: str, state_key: str = "") -> str | None:
        event_id = state.get((event_type, state_key))
        return None if event_id is None else event_id[1:]
