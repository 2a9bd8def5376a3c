"""A table of contents: which packages a homeserver is made of, and in which order they begin and end.

``serve`` runs a homeserver until it is told to stop; ``build_app`` makes the ASGI application of one, with every
service in ``app.state.services`` under its class.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import ModuleType

from fastapi import FastAPI
from starlette.routing import Route

from homeserver import client_api, federation_api, foundation, governance_api, web
from homeserver.accounts import assembly as accounts
from homeserver.client_api import assembly as client_answers
from homeserver.config import Config
from homeserver.ephemeral import assembly as ephemeral
from homeserver.federation import assembly as federation
from homeserver.federation_api import assembly as federation_answers
from homeserver.graph import assembly as graph
from homeserver.housekeeping import Chore, Housekeeping
from homeserver.limits import assembly as limits
from homeserver.membership import assembly as membership
from homeserver.membership.incoming_invitations import IncomingInvitations
from homeserver.reading import assembly as reading
from homeserver.rooms import assembly as rooms
from homeserver.storage import pruning
from homeserver.sync import assembly as sync
from homeserver.web.services import by_class

KEYS_RELOAD_SECONDS = 60
PRUNE_SECONDS = 300
CLOSED_ACCOUNTS_SECONDS = 60
"""How soon after the command line has closed an account its user leaves all rooms."""
CLIENT_TRANSACTIONS_KEPT_MS = 24 * 3600 * 1000
"""How long a client may repeat a request without harm."""


class Homeserver:
    """All services of one server, and their common life."""

    def __init__(self, config: Config) -> None:
        self.base = foundation.build(config)
        self.limits = limits.build(self.base)
        self.federation = federation.build(self.base)
        self.graph = graph.build(self.base, self.federation)
        self.reading = reading.build(self.base, self.graph)
        settings = rooms.build_settings(self.base, self.graph)
        self.membership = membership.build(self.base, self.federation, self.graph, on_joined=settings.take_along)
        self.rooms = rooms.build(self.base, self.federation, self.graph, self.membership, settings)
        self.ephemeral = ephemeral.build(self.base, self.graph, self.reading)
        self.receiving = graph.build_receiving(
            self.base, self.graph, self.membership.out_of_band, self.ephemeral.edus()
        )
        self.incoming_invitations = IncomingInvitations(
            self.graph.heads, self.graph.events, self.membership.out_of_band_invitations, self.receiving.receive_pdus
        )
        self.accounts = accounts.build(
            self.base, self.federation, self.graph.notifier, self.membership.memberships, self.limits
        )
        self.sync = sync.build(self.base, self.graph, self.reading, self.ephemeral)
        leave_for_closed = self.membership.memberships.leave_for_closed_accounts
        self.housekeeping = Housekeeping(
            [
                Chore("signing keys", KEYS_RELOAD_SECONDS, self._reload_keys),
                Chore("client transactions", PRUNE_SECONDS, self._prune_transactions),
                Chore("closed accounts", CLOSED_ACCOUNTS_SECONDS, leave_for_closed),
            ]
        )
        self.services = by_class(
            self.base,
            self.federation,
            self.graph,
            self.reading,
            self.membership,
            self.rooms,
            self.ephemeral,
            self.accounts,
            federation_answers.build(self.base, self.federation, self.graph, self.limits),
            client_answers.build(self.base),
            singles=(
                self.receiving,
                self.incoming_invitations,
                self.sync,
                self.limits,
                web.ClientAddresses(config.trusted_proxies),
                web.BodyBudget(),
                web.LargeAnswers(config.data_dir),
            ),
        )

    async def start(self) -> None:
        """Begin the background work."""
        await self.graph.under_way.start()
        notices = (self.ephemeral.typing, self.limits)
        self.graph.others.start(self.graph.notifier, self.ephemeral.relay, notices)
        await self.receiving.start()
        await self.graph.waiting.start(self.graph.arrivals.retry)
        await self.graph.delivery.start()
        await self.membership.start()
        self.housekeeping.start()

    def begin_shutdown(self) -> None:
        """Answer those who wait for something to happen."""
        self.graph.notifier.close()

    async def stop(self) -> None:
        """Finish what is under way, and close everything."""
        self.graph.notifier.close()
        await self.ephemeral.typing.stop()
        await self.limits.stop()
        await self.receiving.stop()
        await self.graph.waiting.stop()
        await self.graph.others.stop()
        await self.housekeeping.stop()
        await self.membership.stop()
        await self.graph.delivery.stop()
        await self.graph.backfiller.stop()
        await self.graph.writers.idle()
        await self.federation.aclose()
        self.accounts.passwords.close()
        await asyncio.to_thread(self.base.database.close)

    async def _reload_keys(self) -> None:
        self.base.signing_keys.reload_if_changed()

    async def _prune_transactions(self) -> None:
        before_ts = self.base.clock.now_ms() - CLIENT_TRANSACTIONS_KEPT_MS
        await self.base.database.write(pruning.prune_client_transactions, before_ts)


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
