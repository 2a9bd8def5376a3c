"""Builds the services that show rooms to our users and to other servers."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.foundation import Foundation
from homeserver.graph.assembly import GraphServices
from homeserver.reading.client_events import ClientEvents
from homeserver.reading.history import History
from homeserver.reading.paging import Pages
from homeserver.reading.room_access import RoomAccess
from homeserver.reading.shared_history import SharedHistory
from homeserver.reading.state_and_members import StateAndMembers
from homeserver.reading.visible_events import VisibleEvents


@dataclass(frozen=True, slots=True)
class ReadingServices:
    """What users and servers may see of rooms."""

    client_events: ClientEvents
    access: RoomAccess
    visible: VisibleEvents
    history: History
    state_and_members: StateAndMembers
    shared_history: SharedHistory


def build(base: Foundation, graph: GraphServices) -> ReadingServices:
    """The services of this package."""
    database, clock, heads, events, states = base.database, base.clock, graph.heads, graph.events, graph.states
    client_events = ClientEvents(events)
    access = RoomAccess(database, heads, events)
    visible = VisibleEvents(database, events, heads)
    pages = Pages(database, events, visible, graph.backfiller, clock)
    return ReadingServices(
        client_events=client_events,
        access=access,
        visible=visible,
        history=History(pages, events, states, client_events, visible, access, clock),
        state_and_members=StateAndMembers(database, heads, events, states, client_events, access, clock),
        shared_history=SharedHistory(database, heads, events, states, graph.access),
    )
