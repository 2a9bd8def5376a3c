"""Builds the services for receipts and typing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from homeserver.ephemeral.receipts import Receipts
from homeserver.ephemeral.relay import EphemeralRelay
from homeserver.ephemeral.typing import Typing
from homeserver.ephemeral.who_has_read import WhoHasRead
from homeserver.foundation import Foundation
from homeserver.graph.assembly import GraphServices
from homeserver.graph.received_transactions import EduHandler
from homeserver.reading.assembly import ReadingServices
from homeserver.storage.notices import Notices


@dataclass(frozen=True, slots=True)
class EphemeralServices:
    """Receipts and typing."""

    receipts: Receipts
    typing: Typing
    relay: EphemeralRelay
    who_has_read: WhoHasRead

    def edus(self) -> Mapping[str, EduHandler]:
        """The handler of each EDU type from other servers."""
        return {"m.receipt": self.receipts.receive, "m.typing": self.typing.receive}


def build(base: Foundation, graph: GraphServices, reading: ReadingServices) -> EphemeralServices:
    """The services of this package."""
    database, heads, events, delivery = base.database, graph.heads, graph.events, graph.delivery
    receipts = Receipts(
        database, graph.notifier, heads, events, delivery, base.clock, enabled=base.config.read_receipts.enabled
    )
    typing = Typing(
        graph.notifier,
        heads,
        delivery,
        Notices(database),
        base.clock,
        process=int(database.name[:4], 16),
        is_local=base.is_local,
    )
    graph.writers.watch_departures(typing.departed)
    return EphemeralServices(
        receipts=receipts,
        typing=typing,
        relay=EphemeralRelay(database, delivery, receipts, base.is_local),
        who_has_read=WhoHasRead(database, heads, events, graph.states, reading.visible, receipts, base.server_name),
    )
