"""Filters: parsing and applying what a client wants to see of a sync, or of a room's messages or members.

https://spec.matrix.org/v1.19/client-server-api/#filtering
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import orjson

from homeserver.errors import BadJson, InvalidParam, NotJson
from homeserver.protocol.globs import GlobSet
from homeserver.protocol.json_types import JsonObject

LIST_ENTRIES_MAX = 5000
"""How many entries any one list in a filter may have."""
LIMIT_MAX = 1000
"""How many events one filter can ask for; a larger limit counts as this one."""
FILTER_CHARACTERS_MAX = 65_536
"""How many characters a filter given as text may have."""
CACHED_CHARACTERS_MAX = 4_096
"""Longer ones are parsed each time: they would need too much memory."""
WILDCARD_CHARACTERS_MAX = 4_096
"""How many characters the types in one list may have whose wildcards are not just at one end, all together."""
EVENT_FIELDS_MAX = 200
"""How many fields a filter may choose: each of them is looked for in each event."""


class TypePattern:
    """A list of event types, in which ``*`` stands for any characters. Raises ``InvalidParam``."""

    __slots__ = ("_globs",)

    def __init__(self, types: tuple[str, ...]) -> None:
        try:
            self._globs = GlobSet(types, question_mark=False, automaton_characters_max=WILDCARD_CHARACTERS_MAX)
        except ValueError as error:
            raise InvalidParam("The filter has too many types with wildcards elsewhere than at one end") from error

    def matches(self, event_type: str) -> bool:
        """Whether the type is in the list."""
        return self._globs.matches(event_type)


@dataclass(frozen=True, slots=True)
class _TypesAndSenders:
    """The common parts of all filters. ``None`` for a list that is absent; an empty one lets nothing through."""

    limit: int | None = None
    types: TypePattern | None = None
    not_types: TypePattern | None = None
    senders: frozenset[str] | None = None
    not_senders: frozenset[str] = frozenset()
    is_everything: bool = True
    """Whether it lets every event through: ``allows`` need not be called."""
    is_nothing: bool = False
    """Whether it lets no event through: none need be read."""

    def _allows(self, event_type: str, sender: str | None) -> bool:
        # "A matching type will be excluded even if it is listed in the `types` filter"; senders likewise.
        if self.not_types is not None and self.not_types.matches(event_type):
            return False
        if sender in self.not_senders:
            return False
        if self.types is not None and not self.types.matches(event_type):
            return False
        return self.senders is None or sender in self.senders


@dataclass(frozen=True, slots=True)
class EventFilter(_TypesAndSenders):
    """Which events outside of rooms are let through."""

    def allows(self, event_type: str, sender: str | None) -> bool:
        """Whether an event of this type and sender is let through. ``None`` for an event without a sender."""
        return self.is_everything or self._allows(event_type, sender)


@dataclass(frozen=True, slots=True)
class RoomEventFilter(_TypesAndSenders):
    """Which events of rooms are let through, and how members are loaded."""

    rooms: frozenset[str] | None = None
    not_rooms: frozenset[str] = frozenset()
    contains_url: bool | None = None
    lazy_load_members: bool = False
    include_redundant_members: bool = False
    unread_thread_notifications: bool = False

    def allows_room(self, room_id: str) -> bool:
        """Whether any events of this room are let through."""
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)

    def allows(self, event_type: str, sender: str | None, room_id: str, content: Mapping[str, Any]) -> bool:
        """Whether an event of a room is let through. ``sender`` is ``None`` for an event without one, such as
        typing.
        """
        if self.is_everything:
            return True
        if self.contains_url is not None and ("url" in content) is not self.contains_url:
            return False
        return self.allows_room(room_id) and self._allows(event_type, sender)


StateFilter: TypeAlias = RoomEventFilter
"""The filter for a room's state has the same form as the one for its events."""


@dataclass(frozen=True, slots=True)
class RoomFilter:
    """Which rooms are let through, and which of their events."""

    rooms: frozenset[str] | None = None
    not_rooms: frozenset[str] = frozenset()
    include_leave: bool = False
    ephemeral: RoomEventFilter = RoomEventFilter()
    state: StateFilter = RoomEventFilter()
    timeline: RoomEventFilter = RoomEventFilter()
    account_data: RoomEventFilter = RoomEventFilter()

    def allows_room(self, room_id: str) -> bool:
        """Whether the room is let through; checked before the filters for its parts."""
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)


FieldPath: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Filter:
    """A whole filter of /sync."""

    event_fields: tuple[FieldPath, ...] | None = None
    """Paths into the event, each a sequence of property names; ``None`` for all of it."""
    event_format: str = "client"
    presence: EventFilter = EventFilter()
    account_data: EventFilter = EventFilter()
    room: RoomFilter = RoomFilter()


EVERYTHING = Filter()
"""The filter of a request without one."""
_ALL_EVENTS = EventFilter()
_ALL_ROOM_EVENTS = RoomEventFilter()
_ALL_ROOMS = RoomFilter()
_NO_NAMES: frozenset[str] = frozenset()


def parse_filter_text(text: str) -> Filter:
    """The filter in the JSON text of a query parameter; cached, because clients send the same one again and again.

    Raises ``NotJson``, ``BadJson`` or ``InvalidParam``.
    """
    if len(text) > CACHED_CHARACTERS_MAX:
        return parse_filter(_load(text))
    return _parse_short(text)


@lru_cache(maxsize=256)
def _parse_short(text: str) -> Filter:
    return parse_filter(_load(text))


def parse_room_event_filter_text(text: str) -> RoomEventFilter:
    """The same as ``parse_filter_text``, for the ``filter`` of /messages and /context, which is a RoomEventFilter."""
    if len(text) > CACHED_CHARACTERS_MAX:
        return parse_room_event_filter(_load(text))
    return _parse_short_room_event_filter(text)


@lru_cache(maxsize=256)
def _parse_short_room_event_filter(text: str) -> RoomEventFilter:
    return parse_room_event_filter(_load(text))


def parse_filter(obj: object) -> Filter:
    """The filter in a parsed JSON object. Unknown properties are ignored.

    Raises ``BadJson`` for the wrong JSON types and ``InvalidParam`` for impossible values.
    """
    fields = _object(obj, "filter")
    if not fields:
        return EVERYTHING
    event_format = fields.get("event_format", "client")
    if event_format not in ("client", "federation"):
        raise InvalidParam("event_format must be 'client' or 'federation'")
    paths = _strings(fields, "event_fields")
    if paths is not None and len(paths) > EVENT_FIELDS_MAX:
        raise InvalidParam(f"event_fields has more than {EVENT_FIELDS_MAX} entries")
    return Filter(
        event_fields=None if paths is None else tuple(split_property_path(path) for path in paths),
        event_format=event_format,
        presence=_parse_event_filter(fields["presence"], "presence") if "presence" in fields else _ALL_EVENTS,
        account_data=(
            _parse_event_filter(fields["account_data"], "account_data") if "account_data" in fields else _ALL_EVENTS
        ),
        room=_parse_room_filter(fields["room"]) if "room" in fields else _ALL_ROOMS,
    )


def parse_room_event_filter(obj: object, where: str = "filter") -> RoomEventFilter:
    """The RoomEventFilter in a parsed JSON object; raises as ``parse_filter`` does."""
    fields = _object(obj, where)
    if not fields:
        return _ALL_ROOM_EVENTS
    limit, types, not_types, senders, not_senders = _parse_common(fields)
    rooms = _names(fields, "rooms", "!")
    not_rooms = _names(fields, "not_rooms", "!") or _NO_NAMES
    contains_url = _boolean(fields, "contains_url", None)
    return RoomEventFilter(
        limit=limit,
        types=None if types is None else TypePattern(types),
        not_types=TypePattern(not_types) if not_types else None,
        senders=senders,
        not_senders=not_senders,
        is_everything=(
            types is None
            and senders is None
            and rooms is None
            and contains_url is None
            and not (not_types or not_senders or not_rooms)
        ),
        is_nothing=(
            types == ()
            or "*" in not_types
            or (senders is not None and senders <= not_senders)
            or (rooms is not None and rooms <= not_rooms)
        ),
        rooms=rooms,
        not_rooms=not_rooms,
        contains_url=contains_url,
        lazy_load_members=_boolean(fields, "lazy_load_members", False) is True,
        include_redundant_members=_boolean(fields, "include_redundant_members", False) is True,
        unread_thread_notifications=_boolean(fields, "unread_thread_notifications", False) is True,
    )


def split_property_path(path: str) -> FieldPath:
    r"""The property names in a dot-separated path; ``\.`` and ``\\`` stand for a literal dot and backslash.

    https://spec.matrix.org/v1.19/appendices/#dot-separated-property-paths
    """
    if "\\" not in path:
        return tuple(path.split("."))
    names, name, position = [], "", 0
    while position < len(path):
        character = path[position]
        if character == "\\" and path[position + 1 : position + 2] in (".", "\\"):
            name += path[position + 1]
            position += 1
        elif character == ".":
            names.append(name)
            name = ""
        else:
            name += character
        position += 1
    return (*names, name)


def select_fields(event: JsonObject, paths: tuple[FieldPath, ...]) -> JsonObject:
    """The parts of the event that the paths lead to, as a new object; the argument is not changed."""
    selected: JsonObject = {}
    for path in paths:
        _copy_path(event, selected, path)
    return selected


def _copy_path(source: Any, target: JsonObject, path: FieldPath) -> None:
    *parents, last = path
    for name in parents:
        if not isinstance(source, dict) or name not in source:
            return
        source = source[name]
    if not isinstance(source, dict) or last not in source:
        return
    for name in parents:
        inner = target.get(name)
        # The shorter path has copied this object already; a longer one into it must not change the source.
        if inner is not None and not isinstance(inner, _Partial):
            return
        target = target.setdefault(name, _Partial())
    target[last] = source[last]


class _Partial(dict[str, Any]):
    """An object that holds only the selected properties."""


def _load(text: str) -> object:
    if len(text) > FILTER_CHARACTERS_MAX:
        raise BadJson("The filter is too long")
    try:
        parsed: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise NotJson("The filter is not valid JSON") from error
    return parsed


def _parse_event_filter(obj: object, where: str) -> EventFilter:
    fields = _object(obj, where)
    if not fields:
        return _ALL_EVENTS
    limit, types, not_types, senders, not_senders = _parse_common(fields)
    return EventFilter(
        limit=limit,
        types=None if types is None else TypePattern(types),
        not_types=TypePattern(not_types) if not_types else None,
        senders=senders,
        not_senders=not_senders,
        is_everything=types is None and senders is None and not (not_types or not_senders),
        is_nothing=types == () or "*" in not_types or (senders is not None and senders <= not_senders),
    )


def _parse_room_filter(obj: object) -> RoomFilter:
    fields = _object(obj, "room")
    parts = {
        name: parse_room_event_filter(fields[name], name) if name in fields else _ALL_ROOM_EVENTS
        for name in ("ephemeral", "state", "timeline", "account_data")
    }
    return RoomFilter(
        rooms=_names(fields, "rooms", "!"),
        not_rooms=_names(fields, "not_rooms", "!") or _NO_NAMES,
        include_leave=_boolean(fields, "include_leave", False) is True,
        **parts,
    )


_Common: TypeAlias = tuple[int | None, tuple[str, ...] | None, tuple[str, ...], frozenset[str] | None, frozenset[str]]


def _parse_common(fields: JsonObject) -> _Common:
    """``limit``, ``types``, ``not_types``, ``senders`` and ``not_senders``."""
    return (
        _limit(fields),
        _strings(fields, "types"),
        _strings(fields, "not_types") or (),
        _names(fields, "senders", "@"),
        _names(fields, "not_senders", "@") or _NO_NAMES,
    )


def _limit(fields: JsonObject) -> int | None:
    limit = fields.get("limit")
    if limit is None:
        return None
    if type(limit) is not int:
        raise BadJson("limit must be an integer")
    if limit < 0:
        raise InvalidParam("limit must not be negative")
    # "must be an integer greater than 0": clients that send 0 all the same want no events, only to know about changes.
    return min(limit, LIMIT_MAX)


def _object(value: object, name: str) -> JsonObject:
    if not isinstance(value, dict):
        raise BadJson(f"{name} must be an object")
    return value


def _boolean(fields: JsonObject, name: str, default: bool | None) -> bool | None:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadJson(f"{name} must be a boolean")
    return value


def _strings(fields: JsonObject, name: str) -> tuple[str, ...] | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(entry) is str for entry in value):
        raise BadJson(f"{name} must be an array of strings")
    if len(value) > LIST_ENTRIES_MAX:
        raise InvalidParam(f"{name} has more than {LIST_ENTRIES_MAX} entries")
    return tuple(dict.fromkeys(value))


def _names(fields: JsonObject, name: str, sigil: str) -> frozenset[str] | None:
    """A list of user or room IDs. A malformed entry could never match, so it raises an error that tells the client."""
    entries = _strings(fields, name)
    if entries is None:
        return None
    if not all(entry.startswith(sigil) for entry in entries):
        raise InvalidParam(f"{name} must hold identifiers that start with '{sigil}'")
    return frozenset(entries)
