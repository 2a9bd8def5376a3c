"""Builds ``/sync``."""

from __future__ import annotations

from homeserver.ephemeral.assembly import EphemeralServices
from homeserver.foundation import Foundation
from homeserver.graph.assembly import GraphServices
from homeserver.reading.assembly import ReadingServices
from homeserver.sync.composing import Composer
from homeserver.sync.gathering import Gathering
from homeserver.sync.quick import Quick
from homeserver.sync.recent_changes import RecentChanges
from homeserver.sync.rendering import SyncRendering
from homeserver.sync.service import Sync
from homeserver.sync.views import Views


def build(base: Foundation, graph: GraphServices, reading: ReadingServices, ephemeral: EphemeralServices) -> Sync:
    """The one service of this package."""
    database, clock, events, receipts = base.database, base.clock, graph.events, ephemeral.receipts
    recent, views = RecentChanges(graph.notifier), Views()
    return Sync(
        database,
        graph.notifier,
        clock,
        events,
        Quick(database, events, receipts, recent, views),
        Gathering(database, recent, views, with_receipts=receipts.enabled),
        Composer(database, graph.heads, events, graph.states, reading.visible, ephemeral.typing, receipts),
        SyncRendering(reading.client_events, clock),
    )
