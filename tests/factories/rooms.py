"""Real signed rooms for tests: *alice creates, bob joins, bob is banned*.

    room = RoomFactory(version="11")
    room.create("alice")
    room.join("@bob:other.org")
    message = room.send("@bob:other.org", "hello")
    room.ban("alice", "@bob:other.org")

Users are named by a localpart on the room's own server or by a whole user ID. Every server has a signing key that
follows from its name, and every event is signed by its sender's server, cites the auth events that the specification
selects and comes after all events that have no child yet, unless ``prev_events`` says otherwise (which makes a fork).
Nothing here checks authorization, so what is forbidden can be made too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any

import immutables
from nacl.signing import SigningKey

from homeserver.protocol.authorization.auth_events import auth_event_keys
from homeserver.protocol.compose import add_signature, compose_event
from homeserver.protocol.events import Event, EventDraft, StateKey
from homeserver.protocol.hashes import reference_hash, unpadded_base64
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.signatures import VerifyKeyData

START_TS = 1_700_000_000_000
STEP_MS = 1_000
PREV_EVENTS_MAX = 20

State = immutables.Map[StateKey, str]


class ServerKey:
    """A ``Signer`` whose key follows from the server name (and the key's version)."""

    def __init__(self, server_name: str, key_version: str = "1") -> None:
        self.server_name = server_name
        self.key_id = f"ed25519:{key_version}"
        self.signing_key = SigningKey(sha256(f"{server_name} {key_version}".encode()).digest())
        self.verify_key = self.signing_key.verify_key

    def sign(self, message: bytes) -> str:
        return unpadded_base64(self.signing_key.sign(message).signature)

    def keys(self, valid_until_ts: int | None = None) -> dict[str, VerifyKeyData]:
        """As ``verify_event_signature`` takes them."""
        return {self.key_id: VerifyKeyData(self.verify_key, valid_until_ts)}


@lru_cache(maxsize=1024)
def server_key(server_name: str) -> ServerKey:
    """The key that the factory signs with for this server."""
    return ServerKey(server_name)


class RoomFactory:
    """A room that grows event by event. ``create`` comes first."""

    def __init__(
        self, version: str = "11", server_name: str = "example.org", *, room_localpart: str = "room", ts: int = START_TS
    ) -> None:
        self.version = ROOM_VERSIONS[version]
        self.server_name = server_name
        self.room_localpart = room_localpart
        self.room_id = "" if self.version.room_id_is_create_hash else f"!{room_localpart}:{server_name}"
        self.events: dict[str, Event] = {}
        """Every event of the room in the order in which they were made, by event ID."""
        self.extremities: list[str] = []
        """The events without a child, oldest first."""
        self.create_event: Event | None = None
        self._state_before: dict[str, State] = {}
        self._state_after: dict[str, State] = {}
        self._next_ts = ts

    # -- whole stories

    def create(
        self,
        creator: str = "alice",
        *,
        content: JsonObject | None = None,
        join_rule: str = "public",
        history_visibility: str | None = None,
        power_levels: JsonObject | None = None,
        bare: bool = False,
    ) -> Event:
        """The create event, and unless ``bare`` the creator's join, power levels, join rule and perhaps visibility."""
        creator = self.user(creator)
        create_content: JsonObject = {"room_version": self.version.identifier, **(content or {})}
        if not self.version.creator_is_sender:
            create_content.setdefault("creator", creator)
        created = self.event(creator, "m.room.create", create_content, "")
        if not bare:
            self.join(creator)
            self.set_power_levels(creator, **(power_levels or {}))
            self.state_event(creator, "m.room.join_rules", {"join_rule": join_rule})
            if history_visibility is not None:
                self.state_event(creator, "m.room.history_visibility", {"history_visibility": history_visibility})
        return created

    def join(self, user: str, **options: Any) -> Event:
        return self.member(user, user, "join", **options)

    def leave(self, user: str, **options: Any) -> Event:
        return self.member(user, user, "leave", **options)

    def knock(self, user: str, **options: Any) -> Event:
        return self.member(user, user, "knock", **options)

    def invite(self, sender: str, target: str, **options: Any) -> Event:
        """An invitation, signed by the invited user's server too."""
        return self.member(sender, target, "invite", **options)

    def kick(self, sender: str, target: str, **options: Any) -> Event:
        return self.member(sender, target, "leave", **options)

    def ban(self, sender: str, target: str, **options: Any) -> Event:
        return self.member(sender, target, "ban", **options)

    def unban(self, sender: str, target: str, **options: Any) -> Event:
        return self.member(sender, target, "leave", **options)

    def member(
        self, sender: str, target: str, membership: str, *, content: JsonObject | None = None, **options: Any
    ) -> Event:
        """A member event, with further signatures where they belong; ``content`` adds to the membership."""
        target = self.user(target)
        event = self.event(sender, "m.room.member", {"membership": membership, **(content or {})}, target, **options)
        vouching = event.content.get("join_authorised_via_users_server")
        if membership == "invite":
            event = self.sign(event, target.partition(":")[2])
        elif isinstance(vouching, str):
            event = self.sign(event, vouching.partition(":")[2])
        return event

    def send(
        self,
        sender: str,
        body: str = "hello",
        *,
        type: str = "m.room.message",
        content: JsonObject | None = None,
        **options: Any,
    ) -> Event:
        """A message."""
        return self.event(sender, type, {"msgtype": "m.text", "body": body} if content is None else content, **options)

    def state_event(
        self, sender: str, event_type: str, content: JsonObject, state_key: str = "", **options: Any
    ) -> Event:
        return self.event(sender, event_type, content, state_key, **options)

    def redact(self, sender: str, target: Event | str, *, reason: str | None = None, **options: Any) -> Event:
        content = {} if reason is None else {"reason": reason}
        return self.event(sender, "m.room.redaction", content, redacts=_id(target), **options)

    def set_power_levels(
        self,
        sender: str,
        users: dict[str, int] | None = None,
        *,
        prev_events: Sequence[Event | str] | None = None,
        ts: int | None = None,
        **levels: Any,
    ) -> Event:
        """Power levels as they are, or the defaults, with these changes; users not named keep theirs."""
        before = self.current_state if prev_events is None else self._merged(_id(event) for event in prev_events)
        current = before.get(("m.room.power_levels", ""))
        content = self._default_power_levels(sender) if current is None else dict(self.events[current].content)
        changed = {self.user(user): level for user, level in (users or {}).items()}
        content = {**content, **levels, "users": {**content.get("users", {}), **levels.get("users", {}), **changed}}
        return self.event(sender, "m.room.power_levels", content, "", prev_events=prev_events, ts=ts)

    # -- one event

    def event(
        self,
        sender: str,
        event_type: str,
        content: JsonObject,
        state_key: str | None = None,
        *,
        redacts: str | None = None,
        prev_events: Sequence[Event | str] | None = None,
        auth_events: Sequence[Event | str] | None = None,
        depth: int | None = None,
        ts: int | None = None,
    ) -> Event:
        """Any event: composed, signed by its sender's server, and part of the room from now on."""
        sender = self.user(sender)
        prev_ids = self.extremities[-PREV_EVENTS_MAX:] if prev_events is None else [_id(event) for event in prev_events]
        before = self._merged(prev_ids)
        if auth_events is None:
            keys = auth_event_keys(event_type, sender, state_key, content, self.version)
            auth_ids = [before[key] for key in keys if key in before]
        else:
            auth_ids = [_id(event) for event in auth_events]
        if depth is None:
            depth = 1 + max((self.events[event_id].depth for event_id in prev_ids), default=0)
        is_hashed_create = event_type == "m.room.create" and self.version.room_id_is_create_hash
        event = compose_event(
            EventDraft(event_type, sender, content, state_key, redacts),
            self.version,
            room_id=None if is_hashed_create else self.room_id,
            prev_events=self._references(prev_ids),
            auth_events=self._references(auth_ids),
            depth=depth,
            origin_server_ts=self._timestamp(ts),
            signer=server_key(sender.partition(":")[2]),
            event_id_localpart=f"{self.room_localpart}-{len(self.events)}",
        )
        self._add(event, prev_ids, before)
        return event

    def sign(self, event: Event, server_name: str) -> Event:
        """The event with one more signature; it takes the place of the one without."""
        signed = add_signature(event, server_key(server_name))
        self.events[event.event_id] = signed
        return signed

    # -- what the room is like

    @property
    def current_state(self) -> State:
        """The state after all events without a child."""
        return self._merged(self.extremities)

    @property
    def state(self) -> dict[StateKey, Event]:
        """The current state, with the events themselves."""
        return self.with_events(self.current_state)

    def state_before(self, event: Event | str) -> dict[StateKey, Event]:
        return self.with_events(self._state_before[_id(event)])

    def state_after(self, event: Event | str) -> dict[StateKey, Event]:
        return self.with_events(self._state_after[_id(event)])

    def with_events(self, state: State) -> dict[StateKey, Event]:
        return {key: self.events[event_id] for key, event_id in state.items()}

    def auth_chain(self, events: Iterable[Event | str]) -> list[Event]:
        """All that these events cite, and what those cite, and so on; in the order in which they were made."""
        found: set[str] = set()
        todo = [_id(event) for event in events]
        while todo:
            for cited in self.events[todo.pop()].auth_events:
                if cited not in found:
                    found.add(cited)
                    todo.append(cited)
        return [event for event_id, event in self.events.items() if event_id in found]

    def user(self, name: str) -> str:
        """The user ID for a localpart on the room's server; a user ID stays as it is."""
        return name if name.startswith("@") else f"@{name}:{self.server_name}"

    def keys(self, server_name: str) -> dict[str, VerifyKeyData]:
        """The server's keys, as ``verify_event_signature`` takes them."""
        return server_key(server_name).keys()

    # -- inside

    def _add(self, event: Event, prev_ids: Sequence[str], before: State) -> None:
        if self.create_event is None:
            self.create_event = event
            self.room_id = event.room_id
        self.events[event.event_id] = event
        self._state_before[event.event_id] = before
        self._state_after[event.event_id] = before.set(event.key, event.event_id) if event.is_state else before
        parents = set(prev_ids)
        self.extremities = [event_id for event_id in self.extremities if event_id not in parents] + [event.event_id]

    def _merged(self, event_ids: Iterable[str]) -> State:
        """The state after these events together. Where they differ the newer event counts: this resolves nothing."""
        merged: State | None = None
        for event_id in event_ids:
            after = self._state_after[event_id]
            if merged is None:
                merged = after
            elif merged is not after:
                merged = merged.update(
                    (key, max(merged.get(key, theirs), theirs, key=self._age)) for key, theirs in after.items()
                )
        return immutables.Map() if merged is None else merged

    def _age(self, event_id: str) -> tuple[int, str]:
        return (self.events[event_id].origin_server_ts, event_id)

    def _references(self, event_ids: Iterable[str]) -> list[tuple[str, str]]:
        if not self.version.references_with_hashes:
            return [(event_id, "") for event_id in event_ids]
        return [
            (event_id, unpadded_base64(reference_hash(self.events[event_id].pdu, self.version)))
            for event_id in event_ids
        ]

    def _timestamp(self, chosen: int | None) -> int:
        self._next_ts += STEP_MS
        return self._next_ts if chosen is None else chosen

    def _default_power_levels(self, sender: str) -> JsonObject:
        users = {} if self.version.creators_have_infinite_power else {self.user(sender): 100}
        return {
            "users": users,
            "users_default": 0,
            "events": {"m.room.power_levels": 100},
            "events_default": 0,
            "state_default": 50,
            "ban": 50,
            "kick": 50,
            "redact": 50,
            "invite": 0,
        }


def _id(event: Event | str) -> str:
    return event if isinstance(event, str) else event.event_id
