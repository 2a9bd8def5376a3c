"""``Event``, a parsed PDU, and ``EventDraft``, an event that is not in the graph yet.

https://spec.matrix.org/v1.19/server-server-api/#pdus
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from homeserver.protocol.canonical_json import compact, encode_canonical_json
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion

StateKey: TypeAlias = tuple[str, str]
"""``(event type, state key)``."""
StateMap: TypeAlias = Mapping[StateKey, str]
"""A state of a room: ``(event type, state key)`` to event ID."""
StateEvents: TypeAlias = Mapping[StateKey, "Event"]
"""A state of a room, or the part of it that a rule needs, with the events themselves."""

CREATE: StateKey = ("m.room.create", "")
POWER_LEVELS: StateKey = ("m.room.power_levels", "")
JOIN_RULES: StateKey = ("m.room.join_rules", "")


class Event:
    """An event of a room: a PDU that fits its room version's format. Treat it, ``pdu`` included, as frozen.

    ``pdu`` is the JSON object as signed (``unsigned`` is not part of it); ``event_id`` and ``room_id`` are set in every
    version, whether the PDU contains them or they follow from its hash.
    """

    __slots__ = (
        "_json",
        "auth_events",
        "content",
        "depth",
        "event_id",
        "origin_server_ts",
        "pdu",
        "prev_events",
        "room_id",
        "sender",
        "state_key",
        "type",
        "version",
    )

    def __init__(
        self, pdu: JsonObject, version: RoomVersion, event_id: str, room_id: str, json: bytes | None = None
    ) -> None:
        self.pdu = pdu
        self.version = version
        self.event_id = event_id
        self.room_id = room_id
        self.type: str = pdu["type"]
        self.sender: str = pdu["sender"]
        self.state_key: str | None = pdu.get("state_key")
        self.content: JsonObject = pdu["content"]
        self.depth: int = pdu["depth"]
        self.origin_server_ts: int = pdu["origin_server_ts"]
        if version.references_with_hashes:
            self.prev_events = tuple(reference[0] for reference in pdu["prev_events"])
            self.auth_events = tuple(reference[0] for reference in pdu["auth_events"])
        else:
            self.prev_events = tuple(pdu["prev_events"])
            self.auth_events = tuple(pdu["auth_events"])
        self._json = json

    def __repr__(self) -> str:
        return f"<Event {self.event_id} {self.type}>"

    @property
    def json(self) -> bytes:
        """The canonical JSON of the whole PDU with its signatures: what is stored and sent."""
        if self._json is None:
            self._json = compact(encode_canonical_json(self.pdu))
        return self._json

    @property
    def is_state(self) -> bool:
        """Whether this is a state event."""
        return self.state_key is not None

    @property
    def key(self) -> StateKey:
        """``(type, state_key)``. For state events only."""
        assert self.state_key is not None
        return (self.type, self.state_key)

    @property
    def membership(self) -> str | None:
        """``content.membership`` if it is a string."""
        value = self.content.get("membership")
        return value if isinstance(value, str) else None

    @property
    def redacts(self) -> str | None:
        """The ID of the event that this redaction is for."""
        if self.type != "m.room.redaction":
            return None
        value = self.content.get("redacts") if self.version.redacts_in_content else self.pdu.get("redacts")
        return value if isinstance(value, str) else None

    @property
    def sender_domain(self) -> str:
        """The server name in ``sender``."""
        return self.sender.partition(":")[2]


@dataclass(frozen=True, slots=True)
class EventDraft:
    """What a local sender wants to send, before it has a place in the graph."""

    type: str
    sender: str
    content: JsonObject
    state_key: str | None = None
    redacts: str | None = None
    """The target of a redaction, wherever the room version puts it in the event."""
    origin_server_ts: int | None = None
    """Milliseconds since the epoch, if the sender may choose them; None for the current time."""
    unsigned: JsonObject = field(default_factory=dict)


class Signer(Protocol):
    """Signs as one server with one key."""

    @property
    def server_name(self) -> str:
        """The server that it signs for."""

    @property
    def key_id(self) -> str:
        """``ed25519:...``"""

    def sign(self, message: bytes) -> str:
        """The signature of the bytes, in unpadded base64."""


def create_version(create: Event) -> Any:
    """The room version that a create event names; any JSON value, if the event is malformed.

    https://spec.matrix.org/v1.19/client-server-api/#mroomcreate
    """
    return create.content.get("room_version", "1")


def references(version: RoomVersion, events: Sequence[tuple[str, str]]) -> list[Any]:
    """Pairs of ``(event_id, reference hash)`` in the form that prev_events and auth_events have in that version."""
    if version.references_with_hashes:
        return [[event_id, {"sha256": reference_hash}] for event_id, reference_hash in events]
    return [event_id for event_id, _ in events]
