"""Builds the services that show rooms to our users and to other servers."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.foundation import Foundation
from homeserver.graph.assembly import GraphServices
from homeserver.reading.client_events import ClientEvents
from homeserver.reading.history import History
from homeserver.reading.room_access import RoomAccess
from homeserver.reading.shared_history import SharedHistory
from homeserver.reading.visible_events import VisibleEvents


@dataclass(frozen=True, slots=True)
class ReadingServices:
    """What may be seen of rooms."""

    client_events: ClientEvents
    access: RoomAccess
    visible: VisibleEvents
    history: History
    shared_history: SharedHistory


def build(base: Foundation, graph: GraphServices) -> ReadingServices:
    """The services of this package."""
    database, heads, events, states = base.database, graph.heads, graph.events, graph.states
    client_events = ClientEvents(events)
    access = RoomAccess(database, heads, events)
    visible = VisibleEvents(database, events, heads)
    return ReadingServices(
        client_events=client_events,
        access=access,
        visible=visible,
        history=History(database, heads, events, states, client_events, visible, access, graph.backfiller, base.clock),
        shared_history=SharedHistory(database, heads, events, states, graph.access),
    )
