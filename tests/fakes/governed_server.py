"""A server with the services of the governance API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from homeserver.graph.governed_events import GovernedEvents
from homeserver.graph.send import Sender
from homeserver.membership.bans import Bans
from homeserver.membership.invitations import Invitations
from homeserver.membership.roles import Roles
from homeserver.storage.database import Database
from tests.fakes.homeserver import ALICE, BOB, CAROL, DAVE, SERVER_NAME, CoreServer, add_users


class GovernedServer(CoreServer):
    """One process of the server ``example.org``, where the rules of governance hold."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.governed = GovernedEvents("enforce", database)
        self.sender = Sender(self.writers, self.key, self.clock, self.governed)
        self.memberships._sender = self.sender
        self.roles = Roles(database, self.heads, self.sender, SERVER_NAME)
        self.invitations = Invitations(database, self.heads, self.sender, SERVER_NAME)
        self.bans = Bans(database, self.heads, SERVER_NAME)


def tell(database: Database, story: Callable[[GovernedServer], Awaitable[None]]) -> None:
    """Run a story on a server with a few accounts."""

    async def run() -> None:
        await story(GovernedServer(database))

    add_users(database, ALICE, BOB, CAROL, DAVE)
    asyncio.run(run())
