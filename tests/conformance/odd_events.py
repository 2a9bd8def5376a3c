"""Events as nobody should send them, hashed and signed as if they were in order."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from homeserver.errors import InvalidEvent
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.hashes import reference_bytes, unpadded_base64
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import RoomVersion
from tests.factories.rooms import RoomFactory, server_key

A_HASH = "A" * 43
ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 2**53, 2**63, 2**64 - 1, -(2**63), "", "\0", "a\0b", "x" * 300, "é" * 200, "@a:b", "$\0",
    "!\0:b", [], {}, [None], ["\0"], ["$\0"], [[]], [["$\0:x", {"sha256": "x"}]], {"a": None}, {"\0": "\0"},
    {"a": {"b": "c"}}, ["$" + A_HASH] * 25,
)  # fmt: skip
"""Of every JSON type, and of sizes and characters that do not belong."""


def resigned(pdu: JsonObject, version: RoomVersion, server_name: str) -> JsonObject:
    """The PDU with a hash and a signature that fit what it is now, as far as that can be."""
    key = server_key(server_name)
    pdu = {name: value for name, value in pdu.items() if name != "signatures"}
    try:
        if isinstance(pdu.get("hashes"), dict):
            hashed = {name: value for name, value in pdu.items() if name not in ("hashes", "unsigned")}
            pdu["hashes"] = {"sha256": unpadded_base64(sha256(encode_canonical_json(hashed)).digest())}
        signature = key.sign(reference_bytes(pdu, version))
    except (InvalidEvent, KeyError, TypeError, AttributeError, ValueError):
        signature = "x" * 86
    return {**pdu, "signatures": {key.server_name: {key.key_id: signature}}}


def event_id_of(pdu: JsonObject, version: RoomVersion) -> str | None:
    """The event ID, None for what is no event."""
    try:
        return parse_event(pdu, version).event_id
    except InvalidEvent:
        return None


def next_pdu(room: RoomFactory, sender: str, kind: str, content: JsonObject, key: str | None = None) -> JsonObject:
    """The event that a user would send next, which the room forgets again."""
    kept = (dict(room.events), list(room.extremities), dict(room._state_before), dict(room._state_after))
    pdu = copy.deepcopy(room.event(sender, kind, content, key).pdu)
    room.events, room.extremities, room._state_before, room._state_after = kept
    return pdu


def paths_in(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside an object; of lists only the first entry."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, inner in inside:
        yield (*before, name)
        yield from paths_in(inner, (*before, name))


def with_value(whole: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy in which the value at a path is another."""
    changed = copy.deepcopy(whole)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return changed


def without(whole: Any, path: tuple[Any, ...]) -> Any:
    """A copy in which there is nothing at a path."""
    changed = copy.deepcopy(whole)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return changed
