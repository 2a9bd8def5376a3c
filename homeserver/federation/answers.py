"""What answers of other servers may be: how large by kind, how many elements their lists may have, how long they may
take; and the reading of those that have lists.

An answer with lists goes into a spool, on the disk if it is large, and one such answer is read at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from homeserver.errors import RemoteUnreachable
from homeserver.federation.large_answers import Elements, ListBound, parse_element, read_large_json
from homeserver.outbound.http import Timeouts
from homeserver.outbound.places import Purpose
from homeserver.outbound.spools import MEMORY_BYTES_MAX, Spool, SpoolFull, Spools

_KIB = 1024
_MIB = 1024 * 1024

STATE_EVENTS_MAX: Final = 250_000
"""How many events the state of a room may have, and as many again its auth chain."""
AUTH_CHAIN_EVENTS_MAX: Final = 50_000
EVENT_ID_CHARACTERS_MAX: Final = 255
STRINGS_AT_A_STRETCH = 500


@dataclass(frozen=True, slots=True)
class Limits:
    """How large an answer may be, how long it may take, and its lists by their name."""

    bytes_max: int
    timeouts: Timeouts
    lists: Mapping[str, ListBound] = field(default_factory=dict)
    purpose: Purpose = Purpose.EVENTS
    """Whose places the request takes."""


SMALL: Final = Limits(1 * _MIB, Timeouts(connect=10, read=30, total=60))
"""A few values, or one event."""
TRANSACTION: Final = replace(SMALL, purpose=Purpose.DELIVERY)
HANDSHAKE: Final = replace(SMALL, purpose=Purpose.MEMBERSHIP)
"""A template for a membership event."""
LOOK_UP: Final = Limits(1 * _MIB, Timeouts(connect=5, read=10, total=15), purpose=Purpose.LOOK_UPS)
"""A profile, or what an alias points to: a user waits for it."""
KEYS: Final = Limits(256 * _KIB, Timeouts(connect=10, read=10, total=20), purpose=Purpose.AUTHENTICATION)
"""The keys of one server; an incoming request waits for them to be authenticated."""
KEYS_OF_NOTARY: Final = replace(KEYS, bytes_max=1 * _MIB)
"""All that a notary knows of the keys of one server."""
INVITE: Final = HANDSHAKE
KNOCK: Final = HANDSHAKE
"""The stripped state of a room."""
SIGNATURE: Final = Limits(64 * _KIB, Timeouts(connect=5, read=10, total=10), purpose=Purpose.POLICY)
"""One signature; the sending or showing of an event waits for it."""
_LONG: Final = Timeouts(connect=10, read=180, total=600)
JOIN: Final = Limits(
    256 * _MIB,
    _LONG,
    {"state": ListBound(STATE_EVENTS_MAX), "auth_chain": ListBound(STATE_EVENTS_MAX)},
    Purpose.MEMBERSHIP,
)
STATE: Final = Limits(
    256 * _MIB, _LONG, {"pdus": ListBound(STATE_EVENTS_MAX), "auth_chain": ListBound(STATE_EVENTS_MAX)}
)
STATE_IDS: Final = Limits(
    32 * _MIB, _LONG, {"pdu_ids": ListBound(STATE_EVENTS_MAX), "auth_chain_ids": ListBound(STATE_EVENTS_MAX)}
)
AUTH_CHAIN: Final = Limits(64 * _MIB, _LONG, {"auth_chain": ListBound(AUTH_CHAIN_EVENTS_MAX)})


def some_events(name: str, count: int) -> Limits:
    """The limits of a list of events of which that many were asked for; what more is given is not read."""
    return Limits(16 * _MIB, Timeouts(connect=10, read=60, total=120), {name: ListBound(count, takes_first=True)})


class AnswerReader:
    """Reads answers with lists. One is enough for a process."""

    def __init__(self, spools: Spools | None = None) -> None:
        self._spools = spools or Spools()
        self._turn = asyncio.Lock()

    def spool(self, limits: Limits) -> Spool:
        """What takes the body of such an answer."""
        return self._spools.new(limits.bytes_max)

    async def read(self, destination: str, spool: Spool, limits: Limits, *, is_pair: bool) -> Any:
        """The parsed answer. Its lists that have a bound are lists if it is small, and ``Elements`` otherwise.

        ``is_pair`` takes the object out of ``[200, {...}]``. Raises ``RemoteUnreachable``.
        """
        try:
            if spool.is_in_memory:
                value = parse_element(spool.read(0, MEMORY_BYTES_MAX))
                return _bounded(second_of_pair(value) if is_pair else value, limits)
            async with self._turn:
                return await read_large_json(spool, limits.lists, is_pair=is_pair)
        except (ValueError, SpoolFull, OSError) as error:
            raise RemoteUnreachable(destination, f"the answer is not the JSON that it should be: {error}") from error


def second_of_pair(answer: Any) -> Any:
    """Version 1 of some endpoints answers ``[200, {...}]``."""
    return answer[1] if isinstance(answer, list) and len(answer) == 2 else answer


def is_list_of(value: Any, kind: type) -> bool:
    """Whether a list in an answer has only objects, or only strings (of large answers, only what begins like one)."""
    if isinstance(value, Elements):
        return value.first_bytes <= {b"{"[0] if kind is dict else b'"'[0]}
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


async def event_ids_of(destination: str, found: Any) -> list[str]:
    """The event IDs in a list of an answer. Raises ``RemoteUnreachable`` if something else is among them."""
    event_ids: list[str] = []
    for index, value in enumerate(found):
        if index % STRINGS_AT_A_STRETCH == STRINGS_AT_A_STRETCH - 1:
            await asyncio.sleep(0)
        if not isinstance(value, str) or len(value) > EVENT_ID_CHARACTERS_MAX:
            raise RemoteUnreachable(destination, "the answer has something that is no event ID")
        event_ids.append(value)
    return event_ids


def _bounded(value: Any, limits: Limits) -> Any:
    if isinstance(value, dict):
        for name, bound in limits.lists.items():
            found = value.get(name)
            if isinstance(found, list) and len(found) > bound.elements_max:
                if not bound.takes_first:
                    raise ValueError(f"{name} has more than {bound.elements_max} elements")
                value[name] = found[: bound.elements_max]
    return value
