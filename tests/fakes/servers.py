"""Homeservers for tests: our own ones, whole, and one that shows whatever a ``RoomFactory`` holds."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from homeserver.app import build_app
from homeserver.config import Config
from homeserver.federation.client import FederationClient
from homeserver.federation.request_authentication import sign_request
from homeserver.graph.events import Events
from homeserver.graph.missing_events import Filled
from homeserver.graph.send import Sender
from homeserver.graph.state import RoomHead, RoomHeads
from homeserver.membership.membership import Memberships
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.compose import add_signature
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import Event, EventDraft
from homeserver.protocol.hashes import unpadded_base64
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.signatures import sign_json
from homeserver.reading.history import History
from homeserver.rooms.creation import PRESETS, RoomCreation, RoomRequest
from homeserver.signing import SigningKeys
from homeserver.storage import accounts, history_lanes
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.places import HIGHEST, LOWEST
from tests.factories.rooms import RoomFactory, server_key
from tests.fakes.network import FakeNetwork
from tests.waiting import WAIT_S

T = TypeVar("T")

FAR_FUTURE_TS = 4_000_000_000_000


async def eventually(probe: Callable[[], Awaitable[T]]) -> T:
    """What the probe finds as soon as it finds anything true."""
    async with asyncio.timeout(WAIT_S):
        while not (found := await probe()):  # noqa: ASYNC110 - what is probed lies in the database
            await asyncio.sleep(0.005)
        return found


class OurServer:
    """One of our homeservers, with short ways to do in tests what clients do."""

    def __init__(self, name: str, app: FastAPI) -> None:
        self.name = name
        self.app = app

    def get(self, kind: type[T]) -> T:
        """A service."""
        found: T = self.app.state.services[kind]
        return found

    async def user(self, localpart: str) -> str:
        """A new account."""
        user_id = f"@{localpart}:{self.name}"
        await self.get(Database).write(
            lambda connection: accounts.create_user(connection, user_id, None, is_admin=False, now_ms=1)
        )
        return user_id

    async def room(self, creator: str, *, version: str = "11", preset: str = "public_chat", **options: Any) -> str:
        """A new room."""
        request = RoomRequest(ROOM_VERSIONS[version], PRESETS[preset], **options)
        return (await self.get(RoomCreation).create(creator, request)).room_id

    async def join(self, user_id: str, room_id: str, *via: str) -> None:
        await self.get(Memberships).join(user_id, room_id, via)

    async def send(self, user_id: str, room_id: str, body: str = "hello") -> str:
        draft = EventDraft("m.room.message", user_id, {"msgtype": "m.text", "body": body})
        return (await self.get(Sender).send(room_id, draft)).event_id

    async def send_state(self, user_id: str, room_id: str, kind: str, content: JsonObject, key: str = "") -> str:
        return (await self.get(Sender).send(room_id, EventDraft(kind, user_id, content, key))).event_id

    async def head(self, room_id: str) -> RoomHead:
        return await self.get(RoomHeads).get(room_id)

    async def get_state(self, head: RoomHead, event_type: str, state_key: str = "") -> JsonObject:
        """The content of an event of the current state."""
        event = await self.get(RoomHeads).state_event(head, event_type, state_key)
        return event.content if event is not None else {}

    async def event(self, event_id: str) -> StoredEvent | None:
        found = await self.get(Events).in_any_room(event_id)
        return found[0] if found else None

    async def wait_for(self, event_id: str) -> StoredEvent:
        """An event, as soon as it stands in the graph."""

        async def probe() -> StoredEvent | None:
            stored = await self.event(event_id)
            return stored if stored is not None and stored.stream_position is not None else None

        return await eventually(probe)

    async def backfill(self, room_id: str) -> bool:
        """Fetch older history, as scrolling back does where it comes upon a gap. Returns whether there was any."""
        head = await self.get(RoomHeads).find(room_id)
        room_nid = head.room_nid if head is not None else 0
        gaps = await self.get(Database).read(
            lambda connection: history_lanes.gaps_between(
                connection, room_nid, LOWEST, HIGHEST, sys.maxsize, 10, highest_first=True
            )
        )
        if not gaps:
            return False
        return await self.get(History)._pages._backfiller.fill(room_id, gaps, 30.0) is Filled.NEWS

    async def membership(self, room_id: str, user_id: str) -> str | None:
        event = await self.get(RoomHeads).state_event(await self.head(room_id), "m.room.member", user_id)
        return event.membership if event is not None else None


class Servers:
    """Makes servers that share a network."""

    def __init__(self, directory: Path, database_template: Path) -> None:
        self._directory = directory
        self._template = database_template
        self.network = FakeNetwork()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Servers:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def ours(self, name: str, **settings: Any) -> OurServer:
        """One of our servers, running."""
        return await self._stack.enter_async_context(self.running(name, **settings))

    @contextlib.asynccontextmanager
    async def running(self, name: str, **settings: Any) -> AsyncIterator[OurServer]:
        """One of our servers, which keeps its database when it is started again."""
        directory = self._directory / name.replace(":", "_")
        if not directory.exists():
            directory.mkdir()
            shutil.copyfile(self._template, directory / "homeserver.db")
        config = Config.parse({"server_name": name, "data_dir": ".", **settings}, directory)
        keys = SigningKeys.load(config.keys_dir, name)
        if not keys.has_keys:
            keys.generate(1)
        app = build_app(config)
        app.state.services[FederationClient]._http._transport = self.network.transport(name)
        self.network.apps[name] = app
        async with app.router.lifespan_context(app):
            try:
                yield OurServer(name, app)
            finally:
                self.network.apps.pop(name, None)  # another process of the same server may have taken it out

    def remote(self, name: str, room: RoomFactory | None = None) -> RemoteServer:
        """Another server, which shows what the room factory holds."""
        remote = RemoteServer(name, self.network, room)
        self.network.apps[name] = remote.app
        return remote


Handler = Callable[[Request], Awaitable[Response]]


class RemoteServer:
    """A server that signs with the factory's key and answers from its room. Answers can be replaced."""

    def __init__(self, name: str, network: FakeNetwork, room: RoomFactory | None = None) -> None:
        self.name = name
        self.room = room
        self.received: list[JsonObject] = []
        """The bodies of the transactions that it got."""
        self.hidden: set[str] = set()
        """Event IDs that it does not give away."""
        self.replaced: dict[str, Handler] = {}
        """Endpoint name to what answers in its place."""
        self._network = network
        self._http = httpx.AsyncClient(transport=network.transport(name))
        self._txn_ids = itertools.count(1)
        v1, v2 = "/_matrix/federation/v1", "/_matrix/federation/v2"
        endpoints: Sequence[tuple[str, str, Handler]] = (
            ("GET", "/_matrix/key/v2/server", self._keys),
            ("PUT", f"{v1}/send/{{txn_id}}", self._send),
            ("GET", f"{v1}/make_join/{{room_id}}/{{user_id}}", self._make_join),
            ("PUT", f"{v2}/send_join/{{room_id}}/{{event_id}}", self._send_join),
            ("GET", f"{v1}/make_leave/{{room_id}}/{{user_id}}", self._make_leave),
            ("PUT", f"{v2}/send_leave/{{room_id}}/{{event_id}}", self._send_leave),
            ("PUT", f"{v2}/invite/{{room_id}}/{{event_id}}", self._invite),
            ("GET", f"{v1}/event_auth/{{room_id}}/{{event_id}}", self._event_auth),
            ("GET", f"{v1}/state_ids/{{room_id}}", self._state_ids),
            ("GET", f"{v1}/state/{{room_id}}", self._state),
            ("GET", f"{v1}/event/{{event_id}}", self._event),
            ("GET", f"{v1}/backfill/{{room_id}}", self._backfill),
            ("POST", f"{v1}/get_missing_events/{{room_id}}", self._missing_events),
        )
        self.app = Starlette(
            routes=[Route(path, self._replaceable(handler), methods=[method]) for method, path, handler in endpoints]
        )

    def _replaceable(self, handler: Handler) -> Handler:
        async def endpoint(request: Request) -> Response:
            return await self.replaced.get(handler.__name__.strip("_"), handler)(request)

        return endpoint

    # -- asking --------------------------------------------------------------------------------------------------------

    async def request(
        self, method: str, destination: str, uri: str, content: Any = None, *, signed_as: dict[str, Any] | None = None
    ) -> httpx.Response:
        """A signed request. ``signed_as`` signs something else than what is sent: method, uri, destination, content."""
        signed = {"method": method, "uri": uri, "destination": destination, "content": content, **(signed_as or {})}
        headers = {"Authorization": sign_request(server_key(self.name), **signed)}
        body = None if content is None else encode_canonical_json(content)
        return await self._http.request(method, f"https://{destination}{uri}", headers=headers, content=body)

    async def transaction(
        self, destination: str, pdus: Iterable[Event | JsonObject] = (), edus: Iterable[JsonObject] = (), txn: str = ""
    ) -> dict[str, JsonObject]:
        """Send a transaction; returns the results by event ID."""
        content = {
            "origin": self.name,
            "origin_server_ts": 1,
            "pdus": [pdu.pdu if isinstance(pdu, Event) else pdu for pdu in pdus],
            "edus": list(edus),
        }
        txn = txn or f"txn{next(self._txn_ids)}"
        response = await self.request("PUT", destination, f"/_matrix/federation/v1/send/{txn}", content)
        assert response.status_code == 200, response.text
        results: dict[str, JsonObject] = response.json()["pdus"]
        return results

    def got(self) -> list[JsonObject]:
        """All PDUs that it got."""
        return [pdu for body in self.received for pdu in body["pdus"]]

    def take_in(self, pdu: JsonObject) -> Event:
        """Add an event of another server to the room."""
        room = self._room()
        event = parse_event(pdu, room.version)
        room._add(event, event.prev_events, room._merged(event.prev_events))
        return event

    # -- answering -----------------------------------------------------------------------------------------------------

    def _room(self) -> RoomFactory:
        assert self.room is not None
        return self.room

    def _shown(self, events: Iterable[Event]) -> list[JsonObject]:
        return [event.pdu for event in events if event.event_id not in self.hidden]

    async def _keys(self, _: Request) -> Response:
        key = server_key(self.name)
        keys = {key.key_id: {"key": unpadded_base64(bytes(key.verify_key))}}
        answer = {"server_name": self.name, "verify_keys": keys, "valid_until_ts": FAR_FUTURE_TS}
        return JSONResponse(sign_json({**answer, "old_verify_keys": {}}, key))

    async def _send(self, request: Request) -> Response:
        body = await request.json()
        self.received.append(body)
        return JSONResponse({"pdus": {}})

    async def _make_join(self, request: Request) -> Response:
        return self._template(request, "join")

    async def _make_leave(self, request: Request) -> Response:
        return self._template(request, "leave")

    def _template(self, request: Request, membership: str) -> Response:
        room, user_id = self._room(), request.path_params["user_id"]
        draft = _Probe(room).member(user_id, membership)
        return JSONResponse({"room_version": room.version.identifier, "event": draft})

    async def _send_join(self, request: Request) -> Response:
        room = self._room()
        pdu = await request.json()
        before = room.state
        chain = room.auth_chain([*before.values()])
        self.take_in(pdu)
        return JSONResponse({"state": self._shown(before.values()), "auth_chain": self._shown(chain), "event": pdu})

    async def _send_leave(self, request: Request) -> Response:
        self.left = await request.json()
        return JSONResponse({})

    async def _invite(self, request: Request) -> Response:
        self.invitation = await request.json()
        event = parse_event(self.invitation["event"], ROOM_VERSIONS[self.invitation["room_version"]])
        return JSONResponse({"event": add_signature(event, server_key(self.name)).pdu})

    async def _event_auth(self, request: Request) -> Response:
        room = self._room()
        if request.path_params["event_id"] not in room.events:
            return _not_found()
        return JSONResponse({"auth_chain": self._shown(room.auth_chain([request.path_params["event_id"]]))})

    async def _state_ids(self, request: Request) -> Response:
        if request.query_params["event_id"] not in self._room().events:
            return _not_found()
        state = self._room().state_before(request.query_params["event_id"])
        chain = self._room().auth_chain(state.values())
        return JSONResponse(
            {"pdu_ids": [e.event_id for e in state.values()], "auth_chain_ids": [e.event_id for e in chain]}
        )

    async def _state(self, request: Request) -> Response:
        if request.query_params["event_id"] not in self._room().events:
            return _not_found()
        state = self._room().state_before(request.query_params["event_id"])
        chain = self._room().auth_chain(state.values())
        return JSONResponse({"pdus": self._shown(state.values()), "auth_chain": self._shown(chain)})

    async def _event(self, request: Request) -> Response:
        event = self._room().events.get(request.path_params["event_id"])
        if event is None or event.event_id in self.hidden:
            return _not_found()
        return JSONResponse({"origin": self.name, "origin_server_ts": 1, "pdus": [event.pdu]})

    async def _backfill(self, request: Request) -> Response:
        found = self._before(request.query_params.getlist("v"), set(), int(request.query_params["limit"]))
        return JSONResponse({"origin": self.name, "origin_server_ts": 1, "pdus": self._shown(found)})

    async def _missing_events(self, request: Request) -> Response:
        body = await request.json()
        latest = body["latest_events"]
        found = self._before(latest, set(body["earliest_events"]), body["limit"] + len(latest))
        events = [event for event in found if event.event_id not in latest]
        return JSONResponse({"events": self._shown(reversed(events))})

    def _before(self, start: Iterable[str], stop: set[str], limit: int) -> list[Event]:
        events = self._room().events
        found: dict[str, Event] = {}
        todo = [name for name in start if name in events]
        while todo and len(found) < limit:
            event = events[todo.pop(0)]
            if event.event_id not in found and event.event_id not in stop:
                found[event.event_id] = event
                todo.extend(prev for prev in event.prev_events if prev in events)
        return list(found.values())


class _Probe:
    """Makes templates from a room without adding to it."""

    def __init__(self, room: RoomFactory) -> None:
        self._room = room

    def member(self, user_id: str, membership: str) -> JsonObject:
        room = self._room
        kept = (dict(room.events), list(room.extremities), dict(room._state_before), dict(room._state_after))
        event = room.event(user_id, "m.room.member", {"membership": membership}, user_id)
        room.events, room.extremities, room._state_before, room._state_after = kept
        return {k: v for k, v in event.pdu.items() if k not in ("hashes", "signatures", "event_id")}


def _not_found() -> Response:
    return JSONResponse({"errcode": "M_NOT_FOUND", "error": "?"}, 404)
