"""Events without a place in the graph: auth events, and events of states that other servers describe.

https://spec.matrix.org/v1.19/server-server-api/#pdu
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.given_events import GivenEvents, parts
from homeserver.graph.incoming_events import EVENTS_PER_PART, IncomingEvents, Stretch
from homeserver.graph.judgement import auth_event_ids_first, judge_alone
from homeserver.graph.restoring import Restorer
from homeserver.graph.state import RoomHead
from homeserver.graph.working_head import Job, NewEvent, WorkingHead
from homeserver.protocol.events import Event
from homeserver.storage import event_graph, restored_events
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict

OUTLIERS_PER_JOB = 250


class Outliers:
    """Stores events of other servers that are not part of a room's history."""

    def __init__(
        self, incoming: IncomingEvents, events: Events, writers: RoomWriters, database: Database, restorer: Restorer
    ) -> None:
        self._incoming = incoming
        self._events = events
        self._writers = writers
        self._database = database
        self._restorer = restorer

    async def take_in(self, head: RoomHead, server_name: str, *lists: Sequence[Any]) -> set[str]:
        """Store the PDUs of these lists that are not known yet, after checking them by their auth events (check 4).

        An event that lacks an auth event, both here and among the others, is not stored, since it cannot be checked.
        Returns the IDs of all given events, stored or not. ``server_name`` is the server that gave them. Raises
        ``RemoteError`` if its answer cannot be used.
        """
        async with self._incoming.large_turn(server_name, sum(map(len, lists))):
            given = GivenEvents(head.version, head.room_id)
            for pdus in lists:
                await self._incoming.take(server_name, given, pdus)
            event_ids = set(given)
            known = await self._examine_known(head, given)
            for event_id in known:
                given.discard(event_id)
            await self._incoming.verify_given(given)
            await self._store(head, given)
            return event_ids

    async def _examine_known(self, head: RoomHead, given: GivenEvents) -> set[str]:
        """The events that are stored already. Other copies of them are examined, which may be intact when the stored
        ones are not."""
        found: set[str] = set()
        for part in parts(list(given), EVENTS_PER_PART):
            known = await self._database.read(event_graph.nids_of, head.room_nid, part)
            found |= known.keys()
            copies = {event_id: given[event_id] for event_id in known}
            differing = await self._database.read(restored_events.differing, head.room_nid, copies)
            checked = await self._incoming.verify([copies[event_id] for event_id in differing])
            await self._restorer.restore(event for event in checked if isinstance(event, Event))
        return found

    async def _store(self, head: RoomHead, given: GivenEvents) -> None:
        # In a thread, since this takes long for many events and other requests must not wait.
        order = await asyncio.to_thread(auth_event_ids_first, given)
        stored: set[str] = set()
        rejected: set[str] = set()
        for part in parts(order, OUTLIERS_PER_JOB):
            outliers = await self._judge(head, [given[event_id] for event_id in part], given, stored, rejected)
            if outliers:
                await self._writers.submit(head.room_id, _job_of(outliers))

    async def _judge(
        self, head: RoomHead, part: Sequence[Event], given: GivenEvents, stored: set[str], rejected: set[str]
    ) -> list[NewEvent]:
        """Check 4 for some events whose auth events were handled before; adds to ``stored`` and ``rejected``."""
        cited = {event_id for event in part for event_id in event.auth_events if event_id not in given}
        create_id = "$" + head.room_id[1:] if head.version.room_id_is_create_hash else ""
        if create_id and create_id not in given:
            cited.add(create_id)
        known: dict[str, Event] = {}
        for event_id, found in (await self._events.by_id(head.room_id, cited)).items():
            known[event_id] = found.original
            if found.verdict & Verdict.REJECTED:
                rejected.add(event_id)
        outliers: list[NewEvent] = []
        stretch = Stretch()
        for event in part:
            if stretch.is_over(event):
                await asyncio.sleep(0)
            known.update((name, given[name]) for name in event.auth_events if name in stored)
            if create_id in stored:
                known[create_id] = given[create_id]
            if any(event_id not in known for event_id in event.auth_events):
                continue
            failure = judge_alone(event, known, rejected, create=known.get(create_id))
            stored.add(event.event_id)
            if failure is None:
                outliers.append(NewEvent(event, None, Verdict.OUTLIER))
            else:
                rejected.add(event.event_id)
                outliers.append(NewEvent(event, None, Verdict.OUTLIER | Verdict.REJECTED, str(failure)))
        return outliers


def _job_of(outliers: Sequence[NewEvent]) -> Job:
    async def job(_: WorkingHead) -> Sequence[NewEvent]:
        return outliers

    return job
