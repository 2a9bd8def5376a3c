"""The honest servers of a run: whole ones, which crash and start again on what their databases had committed."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI
from sqlalchemy import select

from homeserver.accounts.access_tokens import hash_token
from homeserver.app import build_app
from homeserver.config import Config
from homeserver.federation.client import FederationClient
from homeserver.signing import SigningKeys
from homeserver.storage import accounts
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, events_by_nid
from homeserver.storage.sessions import NewTokens, start_session
from homeserver.storage.tables import events, rooms
from tests.simulation.network import Host, Network
from tests.simulation.trace import Trace
from tests.simulation.virtual_loop import Life

T = TypeVar("T")


class Server:
    """One of our servers, which keeps its database from life to life."""

    def __init__(self, name: str, directory: Path, template: Path, network: Network, trace: Trace) -> None:
        self.name = name
        self._network = network
        self._trace = trace
        self.users: list[str] = []
        self.app: FastAPI | None = None
        self.life: Life | None = None
        directory.mkdir()
        shutil.copyfile(template, directory / "homeserver.db")
        self._config = Config.parse(
            {"server_name": name, "data_dir": ".", "rate_limits": {"enabled": False}}, directory
        )
        SigningKeys.load(self._config.keys_dir, name).generate(1)
        self._past: list[Any] = []
        """What belonged to ended lives: kept, so that the garbage collector does not run its clean-up."""

    @property
    def is_running(self) -> bool:
        return self.life is not None and not self.life.is_over

    def get(self, kind: type[T]) -> T:
        """A service of the life that runs."""
        assert self.app is not None
        found: T = self.app.state.services[kind]
        return found

    async def start(self) -> None:
        """Begin a new life on what the database holds. Raises ``ConnectionError`` where it crashes meanwhile."""
        assert not self.is_running
        self.life = Life(self.name, self._bury)
        self._trace.note(f"{self.name} starts")
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.life.tell_at_end(started)
        task = self.life.spawn(self._start(self.life))
        task.add_done_callback(lambda done: started.done() or started.set_result(done.result()))
        await started

    async def _start(self, life: Life) -> None:
        self.app = app = build_app(self._config)
        app.state.services[FederationClient]._http._transport = self._network.transport(self.name)
        lifespan = app.router.lifespan_context(app)
        self._past.append(lifespan)
        await lifespan.__aenter__()
        self._network.hosts[self.name] = Host(app, life)

    def crash(self) -> None:
        """End the life where it stands."""
        if self.is_running and self.life is not None:
            self.life.end()
            self._bury()

    def crash_after(self, steps: int) -> None:
        """End the life after a number of steps."""
        if self.life is not None:
            self.life.dies_after = steps

    def _bury(self) -> None:
        self._trace.note(f"{self.name} crashes")
        self._network.hosts.pop(self.name, None)
        self._past.extend([self.app, asyncio.all_tasks()])
        if self.app is not None:
            self.get(Database).close()  # its jobs are dropped: see machine.py

    async def stop(self) -> None:
        """Stop in order, as on SIGTERM."""
        if self.is_running and self.life is not None and self.app is not None:
            await self.life.spawn(self._stop(self.app))
            self.life.end()
            self._network.hosts.pop(self.name, None)
            self._trace.note(f"{self.name} has stopped")

    async def _stop(self, app: FastAPI) -> None:
        app.state.begin_shutdown()
        await self._past[-1].__aexit__(None, None, None)

    # -- what a server is told and asked past its clients --------------------------------------------------------------

    def add_user(self, localpart: str, *devices: str) -> str:
        """A new account, and sessions whose access tokens are ``<user ID> <device>``."""
        user_id = f"@{localpart}:{self.name}"
        with self.get(Database).begin() as connection:
            accounts.create_user(connection, user_id, None, is_admin=False, now_ms=1)
            for device in devices:
                tokens = NewTokens(hash_token(token_of(user_id, device)), None, None)
                start_session(connection, user_id, device, None, tokens, 1)
        self.users.append(user_id)
        return user_id

    def graph(self, room_id: str) -> dict[str, StoredEvent]:
        """Every event of a room that the server holds, by ID."""
        statement = select(events.c.event_nid).join(rooms, rooms.c.room_nid == events.c.room_nid)
        statement = statement.where(rooms.c.room_id == room_id)
        database = self.get(Database)
        nids = database.read_now(lambda connection: list(connection.scalars(statement)))
        stored = database.read_now(events_by_nid, nids)
        return {event.event_id: event for event in sorted(stored, key=lambda event: event.event_nid)}

    def query(self, statement: Any) -> list[Any]:
        """The rows that a statement finds."""
        return self.get(Database).read_now(lambda connection: list(connection.execute(statement)))


def token_of(user_id: str, device: str) -> str:
    """The access token of a device."""
    return f"{user_id.replace(':', '-')}-{device}"
