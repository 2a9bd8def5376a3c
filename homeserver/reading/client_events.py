"""Events as clients get them, serialised once and reused for all clients.

https://spec.matrix.org/v1.19/client-server-api/#room-event-format
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from homeserver.caches import WeightedCache
from homeserver.graph.events import Events
from homeserver.protocol.events import Event
from homeserver.storage.event_graph import StoredEvent

RENDERED_BYTES_MAX = 16 * 1024 * 1024
"""How much memory the kept serialised events may use."""
STRIPPED_STATE_TYPES = (
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
)
"""State that an invited user sees: https://spec.matrix.org/v1.19/client-server-api/#stripped-state"""


class OnBehalfOf(Protocol):
    """The user and device that an event is rendered for."""

    @property
    def user_id(self) -> str:
        """The full user ID."""

    @property
    def device_id(self) -> str:
        """The device that made the request."""


@dataclass(slots=True)
class _Rendered:
    """An event's JSON, in pieces: what differs between clients is put in between."""

    source: StoredEvent
    body: bytes
    """Everything except ``room_id`` and ``unsigned``, without the closing brace."""
    room_id: bytes
    unsigned: bytes
    """The opening of ``unsigned`` and the entries that all clients get, each followed by a comma."""
    sync_form: bytes
    """``body`` and ``unsigned`` joined: the beginning of an event in /sync."""


class ClientEvents:
    """Serialises events for clients."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._rendered: WeightedCache[str, _Rendered] = WeightedCache(
            "rendered events", RENDERED_BYTES_MAX, lambda r: 300 + 2 * len(r.body) + 2 * len(r.unsigned)
        )
        self._successors: dict[str, dict[str, None]] = {}
        """IDs of rendered state events, by the ID of the event that they replaced and whose content they show.

        At most two for each rendered event and 1,000 more.
        """
        self._successors_count = 0
        events.watch(self._forget_successors)

    async def prepare(self, stored: Sequence[StoredEvent]) -> None:
        """Load the events that these events replaced, which ``render`` needs too."""
        replaced = [
            event.replaces_nid for event in stored if event.replaces_nid is not None and not self._is_rendered(event)
        ]
        if replaced:
            await self._events.by_nid(replaced)

    def _is_rendered(self, stored: StoredEvent) -> bool:
        rendered = self._rendered.peek(stored.event_id)
        return rendered is not None and rendered.source is stored

    def _forget_successors(self, event_id: str) -> None:
        """Drop what is rendered with the content of an event, because the event was redacted."""
        successors = self._successors.pop(event_id, {})
        self._successors_count -= len(successors)
        for successor in successors:
            self._rendered.drop(successor)

    def _note_successor(self, replaced: str, event_id: str) -> None:
        known = self._successors.setdefault(replaced, {})
        if event_id not in known:
            known[event_id] = None
            self._successors_count += 1
        if self._successors_count > 2 * len(self._rendered) + 1000:
            kept = (
                (old, {new: None for new in ids if self._rendered.peek(new)}) for old, ids in self._successors.items()
            )
            self._successors = {old: ids for old, ids in kept if ids}
            self._successors_count = sum(map(len, self._successors.values()))

    def render(
        self,
        stored: StoredEvent,
        *,
        now_ms: int,
        with_room_id: bool,
        requester: OnBehalfOf | None = None,
        membership: str | None = None,
    ) -> bytes:
        """The event's JSON.

        If the requester's own device sent the event, it gets its transaction ID. ``membership`` is the requester's
        membership at the event.
        """
        rendered = self._rendered.get(stored.event_id)
        if rendered is None or rendered.source is not stored:
            rendered = self._render(stored)
        age = now_ms - stored.event.origin_server_ts
        start = rendered.body + rendered.room_id + rendered.unsigned if with_room_id else rendered.sync_form
        txn = stored.txn
        if txn is not None and requester is not None and txn[:2] == (requester.user_id, requester.device_id):
            start += b'"transaction_id":' + orjson.dumps(txn[2]) + b","
        if membership is not None:
            start += b'"membership":"' + membership.encode() + b'",'
        return start + b'"age":%d}}' % age

    def render_list(self, stored: Iterable[StoredEvent], now_ms: int) -> bytes:
        """A JSON list of events, with ``room_id``. Call ``prepare`` first."""
        return b"[" + b",".join([self.render(event, now_ms=now_ms, with_room_id=True) for event in stored]) + b"]"

    def _render(self, stored: StoredEvent) -> _Rendered:
        event = stored.event
        unsigned: dict[str, Any] = {}
        complete = True
        if stored.redacted_by is not None:
            unsigned["redacted_by"] = stored.redacted_by.event_id
            unsigned["redacted_because"] = client_event(stored.redacted_by)
        if stored.replaces_nid is not None:
            replaced = self._events.cached_by_nid(stored.replaces_nid)
            if replaced is None:
                complete = False
            else:
                previous = replaced.event
                unsigned["prev_content"] = previous.content
                unsigned["prev_sender"] = previous.sender
                unsigned["replaces_state"] = previous.event_id
                self._note_successor(previous.event_id, stored.event_id)
        fields = client_event(event)
        room_id = fields.pop("room_id")
        body = dumps(fields)[:-1]
        common = b',"unsigned":{' + (dumps(unsigned)[1:-1] + b"," if unsigned else b"")
        rendered = _Rendered(stored, body, b',"room_id":' + orjson.dumps(room_id), common, body + common)
        if complete:
            self._rendered.put(stored.event_id, rendered)
        return rendered


def client_event(event: Event) -> dict[str, Any]:
    """An event in the format of the client-server API, without ``unsigned``."""
    fields: dict[str, Any] = {
        "content": event.content,
        "event_id": event.event_id,
        "origin_server_ts": event.origin_server_ts,
        "room_id": event.room_id,
        "sender": event.sender,
        "type": event.type,
    }
    if event.state_key is not None:
        fields["state_key"] = event.state_key
    if (redacts := event.redacts) is not None:
        # Clients look for it in either place: https://spec.matrix.org/v1.19/rooms/v11/#moving-the-redacts-property
        fields["redacts"] = redacts
        fields["content"] = {**event.content, "redacts": redacts}
    return fields


def stripped_event(event: Event) -> dict[str, Any]:
    """A state event as users see it who are not in the room yet."""
    return {"content": event.content, "sender": event.sender, "state_key": event.state_key, "type": event.type}


def dumps(value: Any) -> bytes:
    """JSON bytes; also of deep nesting and large numbers that orjson refuses (they occur in room versions 1 to 5)."""
    try:
        return orjson.dumps(value)
    except (orjson.JSONEncodeError, RecursionError):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
