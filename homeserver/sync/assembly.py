"""Builds ``/sync``."""

from __future__ import annotations

from homeserver.ephemeral.assembly import EphemeralServices
from homeserver.foundation import Foundation
from homeserver.graph.assembly import GraphServices
from homeserver.reading.assembly import ReadingServices
from homeserver.sync.service import Sync


def build(base: Foundation, graph: GraphServices, reading: ReadingServices, ephemeral: EphemeralServices) -> Sync:
    """The one service of this package."""
    return Sync(
        base.database,
        graph.notifier,
        graph.heads,
        graph.events,
        graph.states,
        reading.client_events,
        reading.visible,
        ephemeral.typing,
        ephemeral.receipts,
        base.clock,
    )
