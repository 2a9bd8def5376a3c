"""The servers that may be asked for missing events.

https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from homeserver.errors import IncompleteAnswer, RemoteError, RemoteRefused, RemoteUnreachable
from homeserver.graph.state import RoomHead

T = TypeVar("T")

SERVERS_ASKED_MAX = 3


class NobodyToAsk(RemoteError):
    """None of the servers that could help is reachable."""

    def __init__(self) -> None:
        super().__init__("(nobody)", "no server is left to ask")


class Helpers:
    """The servers to ask while one batch of events is handled, the likeliest first.

    A server that cannot be reached is not asked again within the batch.
    """

    def __init__(self, servers: list[str], seconds_max: float | None = None) -> None:
        self._servers = servers
        self._seconds_max = seconds_max
        """How long a server may take for an answer; None: as long as the HTTP client allows."""
        self.answered: set[str] = set()
        """The servers that answered a question, if only to say that they do not know."""
        self.silent: set[str] = set()
        """The servers that could not be reached, or had an internal error or too much to do, and never answered."""
        self.is_unsettled = False
        """Whether a server might say more when it is asked again later."""

    @property
    def others(self) -> list[str]:
        """All servers except the first."""
        return self._servers[1:]

    async def ask(
        self, question: Callable[[str], Awaitable[T]], first: str | None = None, *, except_for: Collection[str] = ()
    ) -> T:
        """The first answer from a server; ``first`` is asked before the others, those in ``except_for`` not at all.

        Raises the first error.
        """
        failure: RemoteError | None = None
        for server_name in sorted(self._servers, key=lambda name: name != first):
            if server_name in except_for:
                continue
            try:
                async with asyncio.timeout(self._seconds_max):
                    answer = await question(server_name)
            except TimeoutError:
                error: RemoteError = RemoteUnreachable(server_name, "no answer in time")
            except RemoteError as its_error:
                error = its_error
            else:
                self._note(server_name, None)
                return answer
            self._note(server_name, error)
            failure = failure or error
        raise failure or NobodyToAsk()

    def _note(self, server_name: str, error: RemoteError | None) -> None:
        if error is None or (isinstance(error, RemoteRefused) and error.status < 500 and error.status != 429):
            self.answered.add(server_name)
            self.silent.discard(server_name)
            return
        self.is_unsettled = True
        if isinstance(error, RemoteUnreachable):
            self.drop(server_name)
        if not isinstance(error, IncompleteAnswer) and server_name not in self.answered:
            self.silent.add(server_name)

    def drop(self, server_name: str) -> None:
        """Stop asking a server."""
        if server_name in self._servers:
            self._servers.remove(server_name)


def servers_to_ask(head: RoomHead, own_name: str, origin: str, *likely: str) -> list[str]:
    """The servers to ask for what an event from ``origin`` lacks: that one, the ``likely`` ones, then the largest.

    If the origin is not in the room, no other server is asked: anybody can invent events, and could make us send many
    requests to the members. If it has just joined, the members send its join, and then all are asked.
    """
    if origin not in head.joined_servers:
        return [origin]
    candidates = dict.fromkeys((origin, *likely, *_largest(head)))
    return [name for name in candidates if name != own_name][:SERVERS_ASKED_MAX]


def independent_servers(head: RoomHead, own_name: str, origin: str, *likely: str) -> list[str]:
    """The servers in the room, other than ``origin``, to ask for what came before an event that ``origin`` sent.

    The ``likely`` ones, if they are in the room, come first, then the largest. There are none if the origin is not in
    the room, see ``servers_to_ask``. The server of an event's sender has to be left out by whoever asks: one batch may
    have events of several.
    """
    joined = head.joined_servers
    if origin not in joined:
        return []
    candidates = dict.fromkeys((*(name for name in likely if name in joined), *_largest(head)))
    return [name for name in candidates if name not in (own_name, origin)][:SERVERS_ASKED_MAX]


def _largest(head: RoomHead) -> list[str]:
    joined = head.joined_servers
    return heapq.nsmallest(SERVERS_ASKED_MAX + 2, joined, key=lambda name: (-joined[name], name))
