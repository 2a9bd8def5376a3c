"""A policy server, which signs what it is asked about unless it is told otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from homeserver.protocol.compose import add_signature
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import reference_bytes, unpadded_base64
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.factories.rooms import RoomFactory, ServerKey
from tests.fakes.servers import Servers


class FakePolicyServer:
    """A homeserver that is a policy server too, with one user."""

    def __init__(self, servers: Servers, name: str, version: str = "11", room: RoomFactory | None = None) -> None:
        self.name = name
        self.user = f"@patrol:{name}"
        self.remote = servers.remote(name, room)
        self.version = ROOM_VERSIONS[version]
        self.key = ServerKey(name, "policy_server")
        self.asked: list[JsonObject] = []
        """The events that it was asked about."""
        self.at_once_max = 0
        """How many requests it had to answer at the same time at most."""
        self.judge: Callable[[JsonObject], Awaitable[Response | None]] | None = None
        """Gives the answer to a question about an event; None signs it."""
        self._at_once = 0
        self._rotations = 0
        self.remote.app.router.routes.append(Route("/_matrix/policy/v1/sign", self._sign, methods=["POST"]))

    @property
    def content(self) -> JsonObject:
        """m.room.policy for a room that uses it."""
        return {"via": self.name, "public_keys": {"ed25519": unpadded_base64(bytes(self.key.verify_key))}}

    def rotate(self) -> None:
        """Sign with another key from now on."""
        self._rotations += 1
        self.key = ServerKey(f"{self.name} {self._rotations}", "policy_server")
        self.key.server_name = self.name

    def signed(self, event: Event, room: RoomFactory | None = None) -> Event:
        """The event with its signature, which takes its place in the room."""
        signed = add_signature(event, self.key)
        if room is not None:
            room.events[event.event_id] = signed
        return signed

    def asked_about(self, event: Event) -> int:
        """How often it was asked about an event."""
        return [pdu["hashes"] for pdu in self.asked].count(event.pdu["hashes"])

    def refuse(
        self, status: int = 400, errcode: str = "M_FORBIDDEN", error: str = "Looks like spam", *, containing: str = ""
    ) -> None:
        """Refuse from now on what holds a text."""

        async def judge(pdu: JsonObject) -> Response | None:
            if containing not in str(pdu["content"]):
                return None
            return JSONResponse({"errcode": errcode, "error": error}, status)

        self.judge = judge

    def hold(self, refusal: Response | None = None) -> tuple[asyncio.Event, asyncio.Event]:
        """Think from now on. The first event is set when it is asked, the second one has it answer."""
        asked, held = asyncio.Event(), asyncio.Event()

        async def judge(_: JsonObject) -> Response | None:
            asked.set()
            await held.wait()
            return refusal

        self.judge = judge
        return asked, held

    async def _sign(self, request: Request) -> Response:
        pdu, key = await request.json(), self.key
        self.asked.append(pdu)
        self._at_once += 1
        self.at_once_max = max(self.at_once_max, self._at_once)
        try:
            refusal = await self.judge(pdu) if self.judge is not None else None
        finally:
            self._at_once -= 1
        if refusal is not None:
            return refusal
        return JSONResponse({self.name: {key.key_id: key.sign(reference_bytes(pdu, self.version))}})
