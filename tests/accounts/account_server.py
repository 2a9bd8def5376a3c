"""The account side of a server: the real services on a real database, behind the real endpoints."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine, Iterator
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI

from homeserver import web
from homeserver.accounts.access_tokens import AccessTokens
from homeserver.accounts.account_data import AccountData
from homeserver.accounts.administration import Accounts
from homeserver.accounts.filters import Filters
from homeserver.accounts.login import Login
from homeserver.accounts.login_guard import LoginGuard
from homeserver.accounts.passwords import Passwords
from homeserver.accounts.profiles import Profiles
from homeserver.accounts.registration import Registration
from homeserver.accounts.sessions import Sessions
from homeserver.accounts.user_interactive import UserInteractive
from homeserver.client_api import (
    account_data,
    capabilities,
    filters,
    login,
    profiles,
    registration,
    versions,
    well_known,
    whoami,
)
from homeserver.client_api.capabilities import Capabilities
from homeserver.client_api.limiting import LookUps
from homeserver.client_api.well_known import ClientDiscovery
from homeserver.config import RateLimitsConfig
from homeserver.limits.rate_limits import RateLimits
from homeserver.notifier import Change, Notifier
from homeserver.protocol.json_types import JsonObject
from homeserver.storage.database import Database
from homeserver.web import ClientAddresses
from tests.fakes.clock import FakeClock

T = TypeVar("T")

SERVER_NAME = "example.org"
DUMMY = {"type": "m.login.dummy"}


class FakeRemote:
    """Another server's profiles."""

    def __init__(self) -> None:
        self.profiles: dict[str, JsonObject | Exception] = {}

    async def query_profile(self, destination: str, user_id: str, field: str | None = None) -> JsonObject:
        answer = self.profiles[user_id]
        if isinstance(answer, Exception):
            raise answer
        return answer if field is None else {k: v for k, v in answer.items() if k == field}


class AccountServer:
    """A server, and a client that calls it without a network."""

    def __init__(
        self, database: Database, *, registration_enabled: bool = True, public_base_url: str | None = None
    ) -> None:
        self.database = database
        self.clock = FakeClock()
        self.remote = FakeRemote()
        self.profile_changes: list[str] = []
        self.deactivated: list[str] = []
        self.loop = asyncio.Runner()
        self.notifier = Notifier(0, self._load_changes)
        self.passwords = Passwords(memory_kib=8, passes=1)
        self.access_tokens = AccessTokens(database, self.clock)
        self.sessions = Sessions(database, self.clock, self.access_tokens, self.notifier)
        self.user_interactive = UserInteractive(database, self.clock)
        self.limits = RateLimits(RateLimitsConfig(), self.clock)
        guard = LoginGuard(self.limits, self.clock)
        self.login = Login(database, self.clock, self.passwords, self.sessions, guard, server_name=SERVER_NAME)
        self.registration = Registration(
            database,
            self.clock,
            self.passwords,
            self.sessions,
            self.user_interactive,
            server_name=SERVER_NAME,
            is_enabled=registration_enabled,
        )
        self.accounts = Accounts(
            database,
            self.clock,
            self.passwords,
            self.sessions,
            server_name=SERVER_NAME,
            on_deactivated=self._note_deactivated,
        )
        self.profiles = Profiles(database, self.remote, server_name=SERVER_NAME, on_change=self._note_profile_change)
        self.filters = Filters(database)
        self.app = self._build(public_base_url)
        transport = httpx.ASGITransport(self.app)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://example.org")

    def _build(self, public_base_url: str | None) -> FastAPI:
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        web.install(app)
        services = [
            self.access_tokens,
            self.sessions,
            self.login,
            self.registration,
            self.profiles,
            AccountData(self.database, self.notifier),
            self.filters,
            self.limits,
            ClientAddresses(),
            LookUps(),
            Capabilities("11"),
            ClientDiscovery(public_base_url),
        ]
        app.state.services = {type(instance): instance for instance in services}
        for module in (registration, login, whoami, profiles, account_data, filters, capabilities):
            for version in ("v3", "r0"):
                app.include_router(module.router, prefix=f"/_matrix/client/{version}")
        app.include_router(versions.unversioned)
        app.include_router(well_known.unversioned)
        return app

    def close(self) -> None:
        self.passwords.close()
        self.loop.close()

    # -- what tests do -------------------------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(coroutine)

    async def send(
        self, method: str, path: str, json: Any = None, token: str | None = None, **options: Any
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = path if path.startswith(("/_matrix", "/.well-known")) else "/_matrix/client/v3" + path
        return await self._client.request(method, url, json=json, headers=headers, **options)

    def request(
        self, method: str, path: str, json: Any = None, token: str | None = None, **options: Any
    ) -> httpx.Response:
        return self.run(self.send(method, path, json, token, **options))

    def register(self, username: str = "alice", password: str = "wonderland", **more: Any) -> JsonObject:
        body = {"username": username, "password": password, "auth": DUMMY, **more}
        response = self.request("POST", "/register", body)
        assert response.status_code == 200, response.text
        return response.json()

    def log_in(self, user: str = "alice", password: str = "wonderland", **more: Any) -> httpx.Response:
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": user},
            "password": password,
        }
        return self.request("POST", "/login", body | more)

    def whoami(self, token: str) -> httpx.Response:
        return self.request("GET", "/account/whoami", token=token)

    async def _note_profile_change(self, user_id: str) -> None:
        self.profile_changes.append(user_id)

    async def _note_deactivated(self, user_id: str) -> None:
        self.deactivated.append(user_id)

    async def _load_changes(self, since: int, upto: int) -> list[Change]:
        return []


@contextlib.contextmanager
def running(url: str, **options: Any) -> Iterator[AccountServer]:
    """A server on the database of this URL."""
    database = Database(url)
    server = AccountServer(database, **options)
    yield server
    server.close()
    database.close()


def assert_error(response: httpx.Response, status: int, errcode: str) -> None:
    assert (response.status_code, response.json().get("errcode")) == (status, errcode), response.text
    assert response.json()["error"]


def together(*awaitables: Awaitable[T]) -> Coroutine[Any, Any, list[T]]:
    async def gather() -> list[T]:
        return list(await asyncio.gather(*awaitables))

    return gather()
