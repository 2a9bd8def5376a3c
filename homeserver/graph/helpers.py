"""The servers that may be asked for missing events.

https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable
from typing import TypeVar

from homeserver.errors import RemoteError, RemoteUnreachable
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

    def __init__(self, servers: list[str]) -> None:
        self._servers = servers

    @property
    def others(self) -> list[str]:
        """All servers except the first."""
        return self._servers[1:]

    async def ask(self, question: Callable[[str], Awaitable[T]], first: str | None = None) -> T:
        """The first answer from a server; ``first`` is asked before the others. Raises the first error."""
        failure: RemoteError | None = None
        for server_name in sorted(self._servers, key=lambda name: name != first):
            try:
                return await question(server_name)
            except RemoteError as error:
                if isinstance(error, RemoteUnreachable):
                    self.drop(server_name)
                failure = failure or error
        raise failure or NobodyToAsk()

    def drop(self, server_name: str) -> None:
        """Stop asking a server."""
        if server_name in self._servers:
            self._servers.remove(server_name)


def servers_to_ask(head: RoomHead, own_name: str, origin: str, *likely: str) -> list[str]:
    """The servers to ask for what an event from ``origin`` lacks: that one, the ``likely`` ones, then the largest.

    If the origin is not in the room, no other server is asked: anybody can invent events, and could make us send many
    requests to the members. If it has just joined, the members send its join, and then all are asked.
    """
    joined = head.joined_servers
    if origin not in joined:
        return [origin]
    largest = heapq.nsmallest(SERVERS_ASKED_MAX + 1, joined, key=lambda name: (-joined[name], name))
    return [name for name in dict.fromkeys((origin, *likely, *largest)) if name != own_name][:SERVERS_ASKED_MAX]
