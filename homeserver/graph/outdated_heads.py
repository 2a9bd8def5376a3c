"""Checks refusals against changes that another process has made in the meantime.

Several processes may serve one database. Each learns of another's writes slightly later than that one's clients: a user
who joined through one process and sends through another must not be told that they are not in the room. So before a
request is refused, the head of the room is compared with the database. Allowed requests need no such check: every write
checks the head anyway (``StaleHead``).
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
"""The statuses of refusals that may follow from the state of a room."""


class HasHeads(Protocol):
    """A service that uses the heads of rooms."""

    @property
    def _heads(self) -> RoomHeads: ...


S = TypeVar("S", bound=HasHeads)


def refuses_by_newest_state(
    method: Callable[Concatenate[S, P], Awaitable[T]],
) -> Callable[Concatenate[S, P], Awaitable[T]]:
    """Run a method again if it refuses a request because of a head that turns out to be outdated.

    For methods that have a parameter ``room_id`` and change nothing before they refuse.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    async def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        room_id: Any = signature.bind(self, *args, **kwargs).arguments["room_id"]
        return await unless_outdated(self._heads, room_id, lambda: method(self, *args, **kwargs))

    return run


async def unless_outdated(heads: RoomHeads, room_id: str, action: Callable[[], Awaitable[T]]) -> T:
    """The result of an action on a room; if it refuses, by the room's newest state. Raises the errors of the action."""
    head = heads.cached(room_id)
    try:
        return await action()
    except MatrixError as error:
        if head is None or error.status not in REFUSALS or not await heads.is_outdated(head):
            raise
    return await action()
