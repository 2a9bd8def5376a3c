"""Events without a place in the graph: auth events, and events of states that other servers describe.

https://spec.matrix.org/v1.19/server-server-api/#pdu
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from homeserver.errors import InvalidEvent
from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.judgement import auth_events_first, judge_alone
from homeserver.graph.restoring import Restorer
from homeserver.graph.state import RoomHead
from homeserver.graph.working_head import Job, NewEvent, WorkingHead
from homeserver.protocol.event_format import parse_event
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

    async def take_in(self, head: RoomHead, pdus: Sequence[Any]) -> set[str]:
        """Store the events that are not known yet, after checking them by their auth events (check 4).

        An event that lacks an auth event, both here and among the others, is not stored, since it cannot be checked.
        Returns the IDs of all given events, stored or not.
        """
        parsed: dict[str, Event] = {}
        for pdu in pdus:
            try:
                event = parse_event(pdu, head.version, room_id=head.room_id)
            except InvalidEvent:
                continue
            parsed[event.event_id] = event
        known = await self._database.read(event_graph.nids_of, head.room_nid, list(parsed))
        # Of known events, only other copies are examined: one of them may be intact and the other not.
        copies = {event_id: event for event_id, event in parsed.items() if event_id in known}
        copies_differing = set(await self._database.read(restored_events.differing, head.room_nid, copies))
        wanted = [event for event_id, event in parsed.items() if event_id not in known or event_id in copies_differing]
        checked = {e.event_id: e for e in await self._incoming.verify(wanted) if isinstance(e, Event)}
        await self._restorer.restore(event for event_id, event in checked.items() if event_id in known)
        await self._store(head, {event_id: event for event_id, event in checked.items() if event_id not in known})
        return set(parsed)

    async def _store(self, head: RoomHead, new: Mapping[str, Event]) -> None:
        if not new:
            return
        cited = {event_id for event in new.values() for event_id in event.auth_events}
        if head.version.room_id_is_create_hash:
            cited.add("$" + head.room_id[1:])
        known: dict[str, Event] = {}
        rejected: set[str] = set()
        for event_id, stored in (await self._events.by_id(head.room_id, cited - new.keys())).items():
            known[event_id] = stored.original
            if stored.verdict & Verdict.REJECTED:
                rejected.add(event_id)
        outliers: list[NewEvent] = []
        for event in auth_events_first(new):
            create = known.get("$" + head.room_id[1:]) if head.version.room_id_is_create_hash else None
            if any(event_id not in known for event_id in event.auth_events):
                continue
            failure = judge_alone(event, known, rejected, create=create)
            known[event.event_id] = event
            if failure is None:
                outliers.append(NewEvent(event, None, Verdict.OUTLIER))
            else:
                rejected.add(event.event_id)
                outliers.append(NewEvent(event, None, Verdict.OUTLIER | Verdict.REJECTED, str(failure)))
        for start in range(0, len(outliers), OUTLIERS_PER_JOB):
            await self._writers.submit(head.room_id, _job_of(outliers[start : start + OUTLIERS_PER_JOB]))


def _job_of(outliers: Sequence[NewEvent]) -> Job:
    async def job(_: WorkingHead) -> Sequence[NewEvent]:
        return outliers

    return job
