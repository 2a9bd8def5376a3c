"""Refusals that rest on what another process has changed in the meantime.

Several processes may serve one database. Each hears of what the others write a moment later than their clients do: a
user who joined through one process and sends through another must not be told that it is not in the room. So before a
refusal is answered, the head of the room that it rests on is compared with the database. What is allowed needs no such
look: whatever is written is checked for it anyway (``StaleHead``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from homeserver.errors import MatrixError
from homeserver.graph.state import RoomHeads

P = ParamSpec("P")
T = TypeVar("T")

REFUSALS = frozenset({400, 403, 404})
"""The statuses of answers that may follow from the state of a room."""


class HasHeads(Protocol):
    """A service that looks at rooms."""

    @property
    def _heads(self) -> RoomHeads: ...


S = TypeVar("S", bound=HasHeads)


def refuses_by_newest_state(
    method: Callable[Concatenate[S, P], Awaitable[T]],
) -> Callable[Concatenate[S, P], Awaitable[T]]:
    """Run a method once more if it refuses something by a head that turns out to be outdated.

    For methods with a parameter ``room_id`` that change nothing before they refuse.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    async def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        room_id: Any = signature.bind(self, *args, **kwargs).arguments["room_id"]
        return await unless_outdated(self._heads, room_id, lambda: method(self, *args, **kwargs))

    return run


async def unless_outdated(heads: RoomHeads, room_id: str, action: Callable[[], Awaitable[T]]) -> T:
    """What an action answers about a room; where it refuses, by the room's newest state. Raises what it raises."""
    head = heads.cached(room_id)
    try:
        return await action()
    except MatrixError as error:
        if head is None or error.status not in REFUSALS or not await heads.is_outdated(head):
            raise
    return await action()
