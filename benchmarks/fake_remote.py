"""A remote homeserver that can do one thing: let somebody join its large room."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import httptools
import orjson

from homeserver.protocol.events import Event
from homeserver.protocol.hashes import unpadded_base64
from tests.factories.rooms import RoomFactory, server_key
from tests.interop.servers import Authority, free_port

DAY_MS = 24 * 3600 * 1000


class LargeRoom:
    """A public room of ``members`` users, all of one server, and what that server says to who joins it."""

    def __init__(self, server_name: str, members: int, version: str) -> None:
        self.factory = RoomFactory(version, server_name, room_localpart=f"large{members}v{version}")
        self.factory.create("creator")
        for number in range(1, members):
            self.factory.join(f"member{number}", content={"displayname": f"Member number {number}"})
        self.room_id = self.factory.room_id
        state = list(self.factory.state.values())
        chain = self.factory.auth_chain(state)
        lists = b'"state":[%b],"auth_chain":[%b]' % (_joined(state), _joined(chain))
        self._send_join_end = b',"members_omitted":false,"origin":"%b",%b}' % (server_name.encode(), lists)

    def make_join(self, user_id: str) -> dict[str, Any]:
        """A template for a join."""
        state = self.factory.current_state
        keys = (("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", ""))
        last = self.factory.extremities
        event = {
            "type": "m.room.member",
            "room_id": self.room_id,
            "sender": user_id,
            "state_key": user_id,
            "content": {"membership": "join"},
            "depth": self.factory.events[last[0]].depth + 1,
            "prev_events": last,
            "auth_events": [state[key] for key in keys],
            "origin_server_ts": int(time.time() * 1000),
        }
        return {"room_version": self.factory.version.identifier, "event": event}

    def send_join(self, event: bytes) -> bytes:
        """The room's state before the join."""
        return b'{"event":' + event + self._send_join_end


def _joined(events: list[Event]) -> bytes:
    return b",".join(event.json for event in events)


class FakeRemote:
    """Serves its rooms and its key over TLS."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self.port = free_port()
        self.server_name = f"localhost:{self.port}"
        self._rooms: dict[str, LargeRoom] = {}

    def add_room(self, members: int, version: str) -> LargeRoom:
        """Make a room."""
        room = LargeRoom(self.server_name, members, version)
        self._rooms[room.room_id] = room
        return room

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Listen."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._authority.certificate_file, self._authority.private_key_file)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Request(self), "127.0.0.1", self.port, ssl=context)
        try:
            yield
        finally:
            server.close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body."""
        match path.strip("/").split("/"):
            case ["_matrix", "key", "v2", "server", *_]:
                return 200, orjson.dumps(self._keys())
            case ["_matrix", "federation", "v1", "make_join", room_id, user_id] if unquote(room_id) in self._rooms:
                return 200, orjson.dumps(self._rooms[unquote(room_id)].make_join(unquote(user_id)))
            case ["_matrix", "federation", "v2", "send_join", room_id, _] if unquote(room_id) in self._rooms:
                return 200, self._rooms[unquote(room_id)].send_join(body)
            case ["_matrix", "federation", "v1", "send", _]:
                return 200, b'{"pdus":{}}'
        return 404, b'{"errcode":"M_UNRECOGNIZED","error":"not part of the benchmark"}'

    def _keys(self) -> dict[str, Any]:
        key = server_key(self.server_name)
        keys: dict[str, Any] = {
            "server_name": self.server_name,
            "valid_until_ts": int(time.time() * 1000) + DAY_MS,
            "verify_keys": {key.key_id: {"key": unpadded_base64(bytes(key.verify_key))}},
            "old_verify_keys": {},
        }
        signed = orjson.dumps(keys, option=orjson.OPT_SORT_KEYS)
        return {**keys, "signatures": {self.server_name: {key.key_id: key.sign(signed)}}}


class _Request(asyncio.Protocol):
    def __init__(self, remote: FakeRemote) -> None:
        self._remote = remote
        self._parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self._target = b""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_body(self, piece: bytes) -> None:
        self._body += piece

    def on_message_complete(self) -> None:
        method, path = self._parser.get_method().decode(), urlsplit(self._target.decode()).path
        status, body = self._remote.answer(method, path, self._body)
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)
