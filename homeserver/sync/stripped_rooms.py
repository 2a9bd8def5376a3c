"""What users see of rooms that they are invited to or knock at.

https://spec.matrix.org/v1.19/client-server-api/#stripped-state
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import orjson

from homeserver.graph.events import Events
from homeserver.graph.state import RoomHeads
from homeserver.protocol.json_types import JsonObject
from homeserver.reading.client_events import STRIPPED_STATE_TYPES, stripped_event
from homeserver.storage.sync_streams import Standing


class StrippedRooms:
    """Reads stripped states."""

    def __init__(self, heads: RoomHeads, events: Events) -> None:
        self._heads = heads
        self._events = events

    async def of(
        self, user_id: str, standings: Iterable[Standing], stripped: Mapping[int, bytes | None]
    ) -> dict[str, bytes]:
        """The stripped states of rooms that a user is invited to or knocks at, as JSON lists by room ID.

        ``stripped`` is the stripped state that other servers sent with invitations, by numeric room ID.
        """
        found: dict[str, bytes] = {}
        for standing in standings:
            given = stripped.get(standing.room_nid)
            events = _pruned(given) if given is not None else await self._stripped_state(standing)
            own = (await self._events.by_nid([standing.event_nid])).get(standing.event_nid)
            if own is not None:
                events = [e for e in events if (e["type"], e["state_key"]) != ("m.room.member", user_id)]
                events.append(stripped_event(own.event))
            found[standing.room_id] = orjson.dumps(events)
        return found

    async def _stripped_state(self, standing: Standing) -> list[JsonObject]:
        """The stripped state of a room that this server is in."""
        head = await self._heads.find(standing.room_id)
        if head is None:
            return []
        keys = [*((event_type, "") for event_type in STRIPPED_STATE_TYPES), ("m.room.member", standing.sender)]
        return [stripped_event(event) for event in (await self._heads.state_events(head, keys)).values()]


def _pruned(stripped_state: bytes) -> list[JsonObject]:
    """Stripped state as it may be passed on to clients: only the four properties.

    "Servers cannot pass through what they receive over federation to clients as stripped state."
    """
    given = orjson.loads(stripped_state)
    return [
        {name: event[name] for name in ("type", "state_key", "sender", "content")}
        for event in (given if isinstance(given, list) else ())
        if isinstance(event, dict)
        and all(isinstance(event.get(name), str) for name in ("type", "state_key", "sender"))
        and isinstance(event.get("content"), dict)
    ]
