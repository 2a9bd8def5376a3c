"""The only place where everything is built and joined.

``serve`` runs a homeserver until it is told to stop; ``build_app`` makes the ASGI application of one, with every
service in ``app.state.services`` under its class.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from starlette.routing import Route

from homeserver import client_api, federation_api, governance_api, web
from homeserver.accounts.access_tokens import AccessTokens
from homeserver.accounts.account_data import AccountData
from homeserver.accounts.administration import Accounts
from homeserver.accounts.filters import Filters
from homeserver.accounts.login import Login
from homeserver.accounts.passwords import Passwords
from homeserver.accounts.profiles import Profiles
from homeserver.accounts.registration import Registration
from homeserver.accounts.sessions import Sessions
from homeserver.accounts.user_interactive import UserInteractive
from homeserver.client_api.capabilities import Capabilities
from homeserver.client_api.well_known import ClientDiscovery
from homeserver.clock import SystemClock
from homeserver.config import Config
from homeserver.ephemeral.receipts import Receipts
from homeserver.ephemeral.relay import EphemeralRelay
from homeserver.ephemeral.typing import Typing
from homeserver.ephemeral.who_has_read import WhoHasRead
from homeserver.federation.client import FederationClient
from homeserver.federation.delivery import Delivery
from homeserver.federation.destinations import Destinations
from homeserver.federation.key_ring import KeyRing
from homeserver.federation.permitted_servers import PermittedServers
from homeserver.federation.request_authentication import RequestAuthenticator
from homeserver.federation.server_discovery import ServerDiscovery
from homeserver.federation_api.answers import PduAnswers
from homeserver.federation_api.gate import Gate
from homeserver.federation_api.server_keys import PublishedKeys
from homeserver.graph.ancestors import Ancestors
from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.governed_events import GovernedEvents
from homeserver.graph.imports import RoomImports
from homeserver.graph.incoming_events import IncomingEvents
from homeserver.graph.judgement import Judge
from homeserver.graph.missing_events import Backfiller
from homeserver.graph.other_processes import OtherProcesses
from homeserver.graph.placement import Placer
from homeserver.graph.policy_servers import PolicyServers
from homeserver.graph.receive import Receiver
from homeserver.graph.received_transactions import ReceivedTransactions
from homeserver.graph.send import Sender
from homeserver.graph.server_access import ServerAccess
from homeserver.graph.state import RoomHeads, StateReader
from homeserver.graph.unhelpful_servers import UnhelpfulServers
from homeserver.housekeeping import Chore, Housekeeping
from homeserver.membership.bans import Bans
from homeserver.membership.doubtful_revocations import DoubtfulRevocations
from homeserver.membership.invitations import Invitations
from homeserver.membership.lost_role_changes import LostRoleChanges
from homeserver.membership.membership import MemberProfiles, Memberships
from homeserver.membership.out_of_band import OutOfBand
from homeserver.membership.owed_requests import LEAVE, UNDO_JOIN, OwedRequests
from homeserver.membership.remote_membership import RemoteMembership
from homeserver.membership.resident import Resident
from homeserver.membership.restricted_joins import RestrictedJoins
from homeserver.membership.roles import Roles
from homeserver.notifier import Notifier
from homeserver.outbound.http import OutboundHttp
from homeserver.reading.client_events import ClientEvents
from homeserver.reading.history import History
from homeserver.reading.room_access import RoomAccess
from homeserver.reading.shared_history import SharedHistory
from homeserver.reading.visible_events import VisibleEvents
from homeserver.rooms.aliases import RoomAliases
from homeserver.rooms.creation import RoomCreation
from homeserver.rooms.personal_settings import PersonalSettings
from homeserver.rooms.upgrades import RoomUpgrades
from homeserver.signing import SigningKeys
from homeserver.storage import pruning, streams
from homeserver.storage.database import Database
from homeserver.storage.graph_writes import GraphWriter
from homeserver.sync.service import Sync

KEYS_RELOAD_SECONDS = 60
PRUNE_SECONDS = 300
CLOSED_ACCOUNTS_SECONDS = 60
"""How soon after the command line has closed an account its user leaves all rooms."""
CLIENT_TRANSACTIONS_KEPT_MS = 24 * 3600 * 1000
"""How long a client may repeat a request without harm."""


class Homeserver:
    """All services of one server, and their common life."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.services: dict[type, Any] = {}
        self._build_base()
        self._build_federation()
        self._build_rooms()
        self._build_reading()
        self._build_answers()
        self._build_accounts()
        self.housekeeping = Housekeeping(
            [
                Chore("signing keys", KEYS_RELOAD_SECONDS, self._reload_keys),
                Chore("client transactions", PRUNE_SECONDS, self._prune_transactions),
                Chore("closed accounts", CLOSED_ACCOUNTS_SECONDS, self.memberships.leave_for_closed_accounts),
            ]
        )

    def _add(self, *services: Any) -> None:
        self.services.update({type(service): service for service in services})

    def _is_local(self, user_id: str) -> bool:
        return user_id.endswith(f":{self.config.server_name}")

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin the background work."""
        self.others.start(self.notifier, self.relay)
        await self.typing.start()
        await self.transactions.start()
        await self.delivery.start()
        await self.owed.start({LEAVE: self.remote.finish_leave, UNDO_JOIN: self.remote.undo_join})
        self.housekeeping.start()

    def begin_shutdown(self) -> None:
        """Let those go who wait for something to happen."""
        self.notifier.close()

    async def stop(self) -> None:
        """Finish what is under way, and close everything."""
        self.notifier.close()
        await self.typing.stop()
        await self.transactions.stop()
        await self.others.stop()
        await self.housekeeping.stop()
        await self.owed.stop()
        await self.doubtful.stop()
        await self.lost_changes.stop()
        await self.delivery.stop()
        await self.writers.idle()
        await self.key_ring.aclose()
        await self.http.aclose()
        self.passwords.close()
        await asyncio.to_thread(self.database.close)

    async def _reload_keys(self) -> None:
        self.signing_keys.reload_if_changed()

    async def _prune_transactions(self) -> None:
        before_ts = self.clock.now_ms() - CLIENT_TRANSACTIONS_KEPT_MS
        await self.database.write(pruning.prune_client_transactions, before_ts)

    # -- building ------------------------------------------------------------------------------------------------------

    def _build_base(self) -> None:
        config = self.config
        self.clock = SystemClock()
        self.signing_keys = SigningKeys.load(config.keys_dir, config.server_name)
        self.database = Database(config.database.url)
        self.events = Events(self.database)
        self.heads = RoomHeads(self.database, self.events, self._is_local)
        self.states = StateReader(self.database, self.events)
        position = self.database.read_now(streams.current_position)
        self.others = OtherProcesses(self.database, self.heads, self.events)
        self.notifier = Notifier(position, self.others.load_changes)
        self._add(self.database, self.events, self.heads, self.notifier, self.signing_keys)

    def _build_federation(self) -> None:
        config, federation = self.config, self.config.federation
        permitted = PermittedServers(allowed=federation.allowed_servers, denied=federation.denied_servers)
        self.http = OutboundHttp(
            allow_private_addresses=federation.allow_private_addresses,
            verify_certificates=federation.verify_certificates,
            ca_file=federation.ca_file,
        )
        discovery = ServerDiscovery(self.http, self.clock)
        self.federation = FederationClient(
            config.server_name, self.signing_keys, discovery, self.http, self.clock, permitted
        )
        self.key_ring = KeyRing(
            self.federation,
            self.database,
            self.signing_keys,
            self.clock,
            trusted_key_servers=federation.trusted_key_servers,
        )
        self.delivery = Delivery(
            database=self.database,
            notifier=self.notifier,
            events=self.events,
            destinations=Destinations(config.server_name, self.database, self.heads, self.states, self.events),
            sender=self.federation,
            clock=self.clock,
            enabled=federation.enabled,
        )
        authenticator = RequestAuthenticator(config.server_name, self.key_ring, self.clock, permitted)
        self._add(self.federation, self.key_ring, self.delivery, authenticator)

    def _build_rooms(self) -> None:
        """What rooms are made of, and what our own users do in them."""
        config, database, heads, events, clock = self.config, self.database, self.heads, self.events, self.clock
        server_name, keys, states = config.server_name, self.signing_keys, self.states
        graph = GraphWriter(self._is_local)
        self.writers = writers = RoomWriters(database, heads, events, states, self.notifier, graph, self._is_local)
        imports = RoomImports(database, heads, events, self.notifier, writers, graph, clock, self._is_local)
        governed = GovernedEvents(config.governance.last_owner_protection, database)
        judge = Judge(events, states)
        self.policy = policy = PolicyServers(self.federation, events, judge, clock)
        sender = Sender(writers, keys, clock, governed, policy)
        self.lost_changes = LostRoleChanges(sender, governed, self._is_local)
        writers.watch_power_levels(self.lost_changes.note)
        self.restricted = RestrictedJoins(heads, self._is_local)
        self.server_access = ServerAccess(heads)
        self.incoming = incoming = IncomingEvents(self.key_ring)
        self.ancestors = Ancestors(self.federation, incoming, events, writers, database)
        self.placer = placer = Placer(database, heads, events, writers, judge, self.ancestors, policy)
        self.owed = OwedRequests(database, clock)
        self.remote = RemoteMembership(
            server_name,
            database,
            heads,
            events,
            imports,
            incoming,
            placer,
            sender,
            self.federation,
            self.delivery,
            self.owed,
            keys,
            clock,
        )
        profiles = MemberProfiles(database, self._is_local)
        settings = PersonalSettings(database, heads, self.notifier)
        self.memberships = Memberships(
            database, heads, writers, sender, profiles, self.restricted, self.remote, server_name, settings.take_along
        )
        aliases = RoomAliases(database, heads, self.federation, server_name)
        creation = RoomCreation(writers, sender, self.memberships, aliases, profiles, keys, clock)
        self._add(states, writers, imports, sender, policy, self.lost_changes, self.memberships, aliases, creation)
        self._add(
            RoomUpgrades(database, heads, writers, sender, governed, profiles, settings, keys, clock),
            Roles(database, heads, sender, server_name),
            Invitations(database, heads, sender, server_name),
            Bans(database, heads, server_name),
        )

    def _build_reading(self) -> None:
        """What clients are shown of rooms."""
        database, heads, events, clock = self.database, self.heads, self.events, self.clock
        client_events = ClientEvents(events)
        access = RoomAccess(database, heads, events)
        visible = VisibleEvents(database, events, heads)
        backfiller = Backfiller(
            self.config.server_name, database, heads, events, self.federation, self.incoming, self.placer
        )
        history = History(database, heads, events, self.states, client_events, visible, access, backfiller, clock)
        self.receipts = Receipts(
            database,
            self.notifier,
            heads,
            events,
            self.delivery,
            clock,
            enabled=self.config.read_receipts.enabled,
        )
        self.typing = Typing(database, self.notifier, heads, self.delivery, clock)
        self.relay = EphemeralRelay(database, self.delivery, self.receipts, self._is_local)
        sync = Sync(
            database,
            self.notifier,
            heads,
            events,
            self.states,
            client_events,
            visible,
            self.typing,
            self.receipts,
            clock,
        )
        who_has_read = WhoHasRead(database, heads, events, self.states, visible, self.receipts, self.config.server_name)
        self._add(client_events, access, visible, history, self.receipts, who_has_read, self.typing, sync)

    def _build_answers(self) -> None:
        """What other servers are answered."""
        config, database, heads, events = self.config, self.database, self.heads, self.events
        imports = self.services[RoomImports]
        self.doubtful = DoubtfulRevocations(self.federation)
        out_of_band = OutOfBand(
            config.server_name,
            database,
            heads,
            events,
            imports,
            self.incoming,
            self.server_access,
            self.doubtful,
            self.signing_keys,
            self._is_local,
        )
        receiver = Receiver(
            heads,
            events,
            self.incoming,
            self.ancestors,
            self.placer,
            out_of_band,
            self.server_access,
            UnhelpfulServers(self.clock),
        )
        resident = Resident(
            config.server_name,
            database,
            heads,
            events,
            self.states,
            self.writers,
            self.placer,
            self.incoming,
            self.server_access,
            self.restricted,
            self.policy,
            self.signing_keys,
            self.clock,
        )
        shared_history = SharedHistory(database, heads, events, self.states, self.server_access)
        self.transactions = ReceivedTransactions(
            database,
            receiver,
            {"m.receipt": self.receipts.receive, "m.typing": self.typing.receive},
            self.clock,
        )
        self._add(out_of_band, resident, shared_history, self.server_access, self.transactions)
        self._add(
            Gate(self.services[RequestAuthenticator], self.delivery),
            PduAnswers(config.server_name, self.clock),
            PublishedKeys(self.signing_keys, self.clock),
        )

    def _build_accounts(self) -> None:
        config, database, clock = self.config, self.database, self.clock
        access_tokens = AccessTokens(database, clock)
        sessions = Sessions(database, clock, access_tokens, self.notifier)
        self.passwords = passwords = Passwords()
        user_interactive = UserInteractive(database, clock)
        self._add(access_tokens, sessions, passwords, user_interactive)
        self._add(
            Registration(
                database,
                clock,
                passwords,
                sessions,
                user_interactive,
                server_name=config.server_name,
                is_enabled=config.registration.enabled,
            ),
            Login(database, clock, passwords, sessions, server_name=config.server_name),
            Accounts(
                database,
                clock,
                passwords,
                sessions,
                server_name=config.server_name,
                on_deactivated=self.memberships.leave_all,
            ),
            Profiles(
                database,
                self.federation,
                server_name=config.server_name,
                on_change=self.memberships.refresh_profile,
            ),
            AccountData(database, self.notifier),
            Filters(database),
            Capabilities(config.rooms.default_version),
            ClientDiscovery(config.public_base_url),
        )


# -- the application ---------------------------------------------------------------------------------------------------

CLIENT_PREFIXES = ("/_matrix/client/v3", "/_matrix/client/r0")
"""Older clients use either; they mean the same."""


def build_app(config: Config) -> FastAPI:
    """The ASGI application of a homeserver; its lifespan starts and stops the background work."""
    homeserver = Homeserver(config)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await homeserver.start()
        try:
            yield
        finally:
            await homeserver.stop()

    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        # Looking for an OpenTelemetry provider would cost every request as much as an empty handler.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = homeserver.services
    app.state.begin_shutdown = homeserver.begin_shutdown
    for module in client_api.MODULES:
        _include_client_module(app, module)
    for governed in governance_api.MODULES:
        app.include_router(governed.router, prefix=governance_api.PREFIX)
    if config.federation.enabled:
        for module in federation_api.MODULES:
            app.include_router(module.router)
        app.router.routes.extend(federation_api.routes)
    v3, r0 = CLIENT_PREFIXES
    web.install(app, {r0: v3})
    return app


def _include_client_module(app: FastAPI, module: ModuleType) -> None:
    """A module's ``router`` and plain ``routes`` below v3, its ``v1`` and ``unversioned`` ones where they belong."""
    prefix = CLIENT_PREFIXES[0]
    if router := getattr(module, "router", None):
        app.include_router(router, prefix=prefix)
    for route in getattr(module, "routes", ()):
        app.router.routes.append(Route(prefix + route.path, route.endpoint, methods=list(route.methods)))
    if router := getattr(module, "v1", None):
        app.include_router(router, prefix="/_matrix/client/v1")
    if router := getattr(module, "unversioned", None):
        app.include_router(router)


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    from homeserver.server import run

    run(lambda: build_app(config), config)
