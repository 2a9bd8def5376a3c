"""Builds the services of the event graph.

In two steps, since receiving needs handlers for memberships and ephemeral data, which later packages provide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from homeserver.federation.assembly import FederationServices
from homeserver.federation.delivery import Delivery
from homeserver.federation.destinations import Destinations
from homeserver.foundation import Foundation
from homeserver.graph.ancestors import Ancestors
from homeserver.graph.append import RoomWriters
from homeserver.graph.arrivals import Arrivals
from homeserver.graph.events import Events
from homeserver.graph.governed_events import GovernedEvents
from homeserver.graph.history_servers import HistoryServers
from homeserver.graph.imports import ImportWrites, RoomImports
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.judgement import Judge
from homeserver.graph.missing_events import Backfiller
from homeserver.graph.other_processes import OtherProcesses
from homeserver.graph.out_of_band import OutOfBandMemberships
from homeserver.graph.outliers import Outliers
from homeserver.graph.past_states import PastStates
from homeserver.graph.placement import Placer
from homeserver.graph.policy_servers import PolicyServers
from homeserver.graph.receive import OutsideEvents, Receiver
from homeserver.graph.received_transactions import EduHandler, ReceivedTransactions
from homeserver.graph.restoring import Restorer
from homeserver.graph.send import Sender
from homeserver.graph.server_access import ServerAccess
from homeserver.graph.silent_servers import SilentServers
from homeserver.graph.state import RoomHeads, StateReader
from homeserver.graph.under_way import UnderWay
from homeserver.graph.unhelpful_servers import UnhelpfulServers
from homeserver.graph.waiting_events import WaitingEvents
from homeserver.notifier import Notifier
from homeserver.storage import streams
from homeserver.storage.graph_writes import GraphWriter


@dataclass(frozen=True, slots=True)
class GraphServices:
    """Services that read the graph and add to it."""

    events: Events
    heads: RoomHeads
    states: StateReader
    others: OtherProcesses
    notifier: Notifier
    writers: RoomWriters
    imports: RoomImports
    out_of_band: OutOfBandMemberships
    governed: GovernedEvents
    policy: PolicyServers
    sender: Sender
    access: ServerAccess
    under_way: UnderWay
    incoming: IncomingEvents
    ancestors: Ancestors
    placer: Placer
    waiting: WaitingEvents
    arrivals: Arrivals
    backfiller: Backfiller
    silent: SilentServers
    delivery: Delivery


def build(base: Foundation, federation: FederationServices) -> GraphServices:
    """All services except receiving."""
    database, clock = base.database, base.clock
    events = Events(database)
    heads = RoomHeads(database, events, base.is_local)
    states = StateReader(database, events)
    others = OtherProcesses(database, heads, events)
    notifier = Notifier(database.read_now(streams.current_position), others.load_changes)
    graph = GraphWriter(base.is_local)
    writers = RoomWriters(database, heads, events, states, notifier, graph, base.is_local)
    under_way = UnderWay(database, clock)
    writes = ImportWrites(database, graph, clock, base.server_name)
    governed = GovernedEvents(base.config.governance.last_owner_protection, database)
    judge = Judge(events, states)
    policy = PolicyServers(federation.client, events, judge, clock)
    incoming = IncomingEvents(federation.key_ring)
    restorer = Restorer(database, events, states, writers)
    outliers = Outliers(incoming, events, writers, database, restorer)
    ancestors = Ancestors(federation.client, incoming, events, outliers, database, base.server_name)
    silent = SilentServers(database, clock)
    past = PastStates(ancestors, outliers, events, states, silent, base.server_name)
    placer = Placer(database, heads, events, writers, judge, ancestors, past, policy)
    waiting = WaitingEvents(database, clock)
    history_servers = HistoryServers(base.server_name, heads, events, silent, clock)
    writers.watch_events(waiting.arrived)
    access = ServerAccess(heads, under_way)
    return GraphServices(
        events=events,
        heads=heads,
        states=states,
        others=others,
        notifier=notifier,
        writers=writers,
        imports=RoomImports(heads, events, notifier, writers, under_way, writes, waiting),
        out_of_band=OutOfBandMemberships(database, events, notifier, clock),
        governed=governed,
        policy=policy,
        sender=Sender(writers, base.signing_keys, clock, governed, policy),
        access=access,
        under_way=under_way,
        incoming=incoming,
        ancestors=ancestors,
        placer=placer,
        waiting=waiting,
        arrivals=Arrivals(heads, events, ancestors, placer, UnhelpfulServers(clock), waiting, restorer, access),
        backfiller=Backfiller(database, heads, federation.client, incoming, placer, history_servers, under_way, clock),
        silent=silent,
        delivery=Delivery(
            database=database,
            notifier=notifier,
            events=events,
            destinations=Destinations(base.server_name, database, heads, states, events),
            sender=federation.client,
            clock=clock,
            enabled=base.config.federation.enabled,
        ),
    )


def build_receiving(
    base: Foundation, graph: GraphServices, outside: OutsideEvents, edus: Mapping[str, EduHandler]
) -> ReceivedTransactions:
    """The service that accepts transactions of other servers.

    ``outside`` handles memberships in rooms that this server is not in; ``edus`` has a handler for each type of EDU.
    """
    receiver = Receiver(graph.heads, graph.events, graph.incoming, graph.arrivals, outside, graph.access)
    return ReceivedTransactions(base.database, receiver, edus, base.clock)
