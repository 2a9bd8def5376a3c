"""Faults that were mended, put back one at a time: the simulator must find each of them.

    make simulate MUTATION=A1                # run seeds with a fault
    make mutations                           # for each fault the first seed that finds it

A mutation changes as little as takes out what mended the fault. Where that code moves, the mutation moves with it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

from sqlalchemy import Connection, select, update

from homeserver.errors import RemoteError
from homeserver.graph import judgement, past_states
from homeserver.graph.ancestors import Ancestors
from homeserver.graph.under_way import INVITATION, UnderWay
from homeserver.membership import remote_joins
from homeserver.storage import federation_queries, graph_writes, room_imports, tables

SEEDS = range(5000, 5200)
"""The seeds that are tried until one finds a fault."""


@contextmanager
def one_server_is_believed() -> Iterator[None]:
    """A1: what one server says of the state before an event replaces what is known here, and it proves nothing."""

    async def unshown(*_: Any) -> set[str]:
        return set()

    async def resolve(_working: Any, snapshots: Any) -> Any:
        return snapshots[-1]

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Ancestors, "unshown", unshown))
        stack.enter_context(mock.patch.object(judgement, "_resolve_checked", resolve))
        stack.enter_context(mock.patch.object(judgement, "_completed", lambda given, _: given))
        stack.enter_context(the_sender_is_believed())
        yield


@contextmanager
def the_sender_is_believed() -> Iterator[None]:
    """Past: nobody is asked about the past of an event but the server that sent it."""
    with mock.patch.object(past_states, "independent_servers", return_value=[]):
        yield


@contextmanager
def half_a_state_is_a_state() -> Iterator[None]:
    """A2: events of a state that its server does not give when it is asked once are left out of it.

    Whoever sends an event gives half a state, so the mutation above belongs to it.
    """
    whole_state, ask_all = Ancestors._whole_state, Ancestors._single_events

    async def some_state(self: Ancestors, server: str, head: Any, state_ids: Any, _dispensable: Any) -> Any:
        return await whole_state(self, server, head, state_ids, set(state_ids))

    async def single_events(self: Ancestors, helpers: Any, event_ids: Any, first: str | None = None) -> Any:
        async def fetch(event_id: str) -> Any:
            try:
                return await self._client.get_event(first or "", event_id)
            except RemoteError:
                return None

        if first is None:
            return await ask_all(self, helpers, event_ids)
        return [pdu for pdu in await asyncio.gather(*map(fetch, sorted(event_ids))) if pdu is not None]

    with (
        mock.patch.object(Ancestors, "_whole_state", some_state),
        mock.patch.object(Ancestors, "_single_events", single_events),
        the_sender_is_believed(),
    ):
        yield


@contextmanager
def history_is_ordered_by_depth() -> Iterator[None]:
    """B1: tokens are positions in the stream, and the history that they point into has another order."""

    def place(write: Any, position: int) -> int:
        return (int(write.event.depth) << 24) + position

    with mock.patch.object(graph_writes, "_place", place):
        yield


@contextmanager
def who_comes_back_is_told_nothing() -> Iterator[None]:
    """B3: what changed in a room while the server was not in it is not told to devices that were there before."""
    with mock.patch.object(room_imports, "_record"):
        yield


@contextmanager
def events_are_known_by_their_ids_alone() -> Iterator[None]:
    """A3: whoever asks for the history of one room may start from an event of another."""
    events = tables.events.c

    def placed(connection: Connection, _room_nid: int, event_ids: Any) -> list[Any]:
        statement = select(events.event_nid, events.depth, events.verdict)
        statement = statement.where(events.event_id.in_(list(event_ids)), events.stream_position.is_not(None))
        return list(connection.execute(statement))

    with mock.patch.object(federation_queries, "_placed", placed):
        yield


@contextmanager
def an_invitation_decides_the_version() -> Iterator[None]:
    """A4: the version that an invitation claimed stays that of the room."""
    begin = room_imports.begin

    def begin_as_claimed(connection: Connection, room: Any, kind: str, owner: str) -> Any:
        rooms = tables.rooms
        is_room = rooms.c.room_id == room.room_id
        claimed = connection.execute(select(rooms.c.version).where(is_room)).scalar()
        importing = begin(connection, room, kind, owner)
        if claimed is not None:
            connection.execute(update(rooms).where(is_room).values(version=claimed))
        return importing

    with mock.patch.object(room_imports, "begin", begin_as_claimed):
        yield


@contextmanager
def nobody_waits_for_an_invitation() -> Iterator[None]:
    """C1: whoever accepts an invitation that is still being sent is refused."""
    is_under_way = UnderWay.is_under_way

    async def is_other_under_way(self: UnderWay, kind: str, *of: Any) -> bool:
        return kind != INVITATION and await is_under_way(self, kind, *of)

    with (
        mock.patch.object(UnderWay, "is_under_way", is_other_under_way),
        mock.patch.object(remote_joins, "REFUSAL_RETRIES_S", ()),
    ):
        yield


MUTATIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "A1": one_server_is_believed,
    "A2": half_a_state_is_a_state,
    "A3": events_are_known_by_their_ids_alone,
    "A4": an_invitation_decides_the_version,
    "B1": history_is_ordered_by_depth,
    "B3": who_comes_back_is_told_nothing,
    "C1": nobody_waits_for_an_invitation,
    "past": the_sender_is_believed,
}
PARTS = {"A1": "past", "A2": "past"}
"""Mutations that have another one in them: what that one alone brings about does not count."""


def main() -> None:
    """Look for each fault until it is found."""
    from tests.simulation.processes import run_all
    from tests.simulation.simulation import Outcome, simulate

    without: dict[tuple[int, str | None], Outcome] = {}

    def found_by(name: str, outcome: Outcome) -> list[str]:
        """The checks that fail with the mutation and not without it."""
        part = PARTS.get(name)
        key = (outcome.seed, part)
        if outcome.failures and key not in without:
            (without[key],) = run_all([outcome.seed], partial(simulate, mutation=part), 1)
        return sorted(name for name in outcome.failures if name not in without[key].failures)

    for name in sys.argv[1:] or MUTATIONS:
        mutation = MUTATIONS[name]
        for tried, outcome in enumerate(run_all(SEEDS, partial(simulate, mutation=name), os.cpu_count() or 1), 1):
            if checks := found_by(name, outcome):
                where = f"seed {outcome.seed} (version {outcome.version}), the {tried}th tried"
                print(f"{name} ({mutation.__name__}): found by {where}: {', '.join(checks)}", flush=True)
                break
        else:
            print(f"{name} ({mutation.__name__}): not found", flush=True)


if __name__ == "__main__":
    main()
