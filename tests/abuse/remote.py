"""A remote server that means harm: HTTPS in threads, real rooms and signatures, and any answer that one likes.

mallory = stage.remote()
room = mallory.room()                                # a RoomFactory of its own, which our users can join
mallory.on("GET", "/event_auth/", b"{}" * 1000)      # what it answers to a path with this in it
mallory.send(stage.server, room.send("creator"))     # a transaction
"""

from __future__ import annotations

import itertools
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from homeserver.federation.request_authentication import sign_request
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import Event
from homeserver.protocol.hashes import unpadded_base64
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.signatures import sign_json
from tests.abuse.http import Answer, Connection
from tests.factories.rooms import RoomFactory, server_key
from tests.interop.servers import Authority, OurServer, free_port

CHUNK_BYTES = 256 * 1024
FAR_FUTURE_TS = 4_000_000_000_000


@dataclass(frozen=True)
class Asked:
    """A request that our server made to it."""

    method: str
    path: str
    """Without the query, as it was sent."""
    query: dict[str, list[str]]
    body: bytes

    @property
    def segments(self) -> list[str]:
        """The unquoted parts of the path after ``/_matrix/federation/v1``."""
        return [unquote(part) for part in self.path.split("/")[4:]]


Content = bytes | JsonObject | Iterable[bytes]


@dataclass(frozen=True)
class Refusal:
    """An answer with an error status."""

    status: int = 404
    content: Content = b'{"errcode":"M_NOT_FOUND","error":"not part of the attack"}'


Handler = Callable[[Asked], Content | Refusal | None]
"""Answers with bytes, an object or pieces of bytes, or refuses; ``None`` hangs until the attack is over."""


class RemoteServer:
    """See the module. Stopped by the stage."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self.port = free_port()
        self.server_name = f"localhost:{self.port}"
        self.rooms: dict[str, RoomFactory] = {}
        self.asked: list[Asked] = []
        """What our server asked, oldest first."""
        self.is_over = threading.Event()
        self._handlers: list[tuple[str, str, Handler]] = []
        self._transaction_ids = itertools.count(1)
        self._tls = ssl.create_default_context(cafile=str(authority.ca_file))
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), _handler_of(self))
        self._http.daemon_threads = True
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(authority.certificate_file, authority.private_key_file)
        self._http.socket = context.wrap_socket(
            self._http.socket, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Let go of whoever hangs, and close."""
        self.is_over.set()
        self._http.shutdown()
        self._http.server_close()

    # -- what it has and answers ---------------------------------------------------------------------------------------

    def room(self, version: str = "11", localpart: str = "room", **create: Any) -> RoomFactory:
        """A new public room of its own, which it shows to whoever asks."""
        factory = RoomFactory(version, self.server_name, room_localpart=localpart)
        factory.create("creator", **create)
        self.rooms[factory.room_id] = factory
        return factory

    def on(self, method: str, part_of_path: str, answer: Handler | Content | Refusal) -> None:
        """Answer so from now on; the newest that fits is taken."""
        handler: Handler = answer if callable(answer) else lambda _: answer
        self._handlers.insert(0, (method, part_of_path, handler))

    def let_join(self, user: Any, room: RoomFactory) -> None:
        """Our user joins; the room has the join."""
        answer = user.call("POST", f"/join/{quote(room.room_id)}?via={self.server_name}", {})
        assert answer.status == 200, answer

    def answer(self, asked: Asked) -> Content | Refusal | None:
        """What was set by ``on``, or the truth."""
        self.asked.append(asked)
        for method, part_of_path, handler in self._handlers:
            if asked.method == method and part_of_path in asked.path:
                return handler(asked)
        if asked.path.startswith("/_matrix/key/v2/server"):
            return self._keys()
        return self._truth(asked)

    # -- what it asks of us --------------------------------------------------------------------------------------------

    def connection(self, server: OurServer) -> Connection:
        """A connection to our server's federation port."""
        return Connection(f"https://localhost:{server.listen_port}", self._tls)

    def headers(self, server: OurServer, method: str, target: str, content: bytes | None = None) -> dict[str, str]:
        """The headers of a signed request; ``content`` must be canonical JSON."""
        signed = sign_request(server_key(self.server_name), method, target, server.server_name, content)
        return {"Authorization": signed, "Content-Type": "application/json"}

    def request(self, server: OurServer, method: str, target: str, content: JsonObject | None = None) -> Answer:
        """A signed request on a new connection; ``target`` is the whole path with its query."""
        body = None if content is None else encode_canonical_json(content)
        with self.connection(server) as connection:
            return connection.request(method, target, body, self.headers(server, method, target, body))

    def send(self, server: OurServer, *pdus: Event | JsonObject, edus: Iterable[JsonObject] = ()) -> Answer:
        """A transaction."""
        content = {
            "origin": self.server_name,
            "origin_server_ts": int(time.time() * 1000),
            "pdus": [pdu.pdu if isinstance(pdu, Event) else pdu for pdu in pdus],
            "edus": list(edus),
        }
        target = f"/_matrix/federation/v1/send/abuse{next(self._transaction_ids)}"
        return self.request(server, "PUT", target, content)

    # -- the truth -----------------------------------------------------------------------------------------------------

    def _keys(self) -> JsonObject:
        key = server_key(self.server_name)
        keys = {key.key_id: {"key": unpadded_base64(bytes(key.verify_key))}}
        answer = {"server_name": self.server_name, "verify_keys": keys, "valid_until_ts": FAR_FUTURE_TS}
        return sign_json({**answer, "old_verify_keys": {}}, key)

    def _truth(self, asked: Asked) -> JsonObject | Refusal:
        match asked.segments:
            case ["send", _]:
                return {"pdus": {}}
            case ["make_join", room_id, user_id] if room_id in self.rooms:
                room = self.rooms[room_id]
                return {"room_version": room.version.identifier, "event": join_template(room, user_id)}
            case ["send_join", room_id, _] if room_id in self.rooms:
                room, pdu = self.rooms[room_id], json.loads(asked.body)
                before = room.state
                chain = room.auth_chain(before.values())
                take_in(room, pdu)
                return {"state": _pdus(before.values()), "auth_chain": _pdus(chain), "event": pdu, "origin": "x"}
            case ["event_auth", room_id, event_id] if event_id in self.rooms[room_id].events:
                return {"auth_chain": _pdus(self.rooms[room_id].auth_chain([event_id]))}
            case ["state_ids", room_id] if (event_id := asked.query["event_id"][0]) in self.rooms[room_id].events:
                state = self.rooms[room_id].state_before(event_id).values()
                chain = self.rooms[room_id].auth_chain(state)
                return {"pdu_ids": [e.event_id for e in state], "auth_chain_ids": [e.event_id for e in chain]}
            case ["state", room_id] if (event_id := asked.query["event_id"][0]) in self.rooms[room_id].events:
                state = self.rooms[room_id].state_before(event_id).values()
                return {"pdus": _pdus(state), "auth_chain": _pdus(self.rooms[room_id].auth_chain(state))}
            case ["event", event_id]:
                for room in self.rooms.values():
                    if event_id in room.events:
                        return {
                            "origin": self.server_name,
                            "origin_server_ts": 1,
                            "pdus": _pdus([room.events[event_id]]),
                        }
        return Refusal()


def join_template(room: RoomFactory, user_id: str) -> JsonObject:
    """What ``make_join`` answers."""
    state, last = room.current_state, room.extremities[-20:]
    keys = (("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", ""), ("m.room.member", user_id))
    is_named = not room.version.room_id_is_create_hash
    return {
        "type": "m.room.member",
        "room_id": room.room_id,
        "sender": user_id,
        "state_key": user_id,
        "content": {"membership": "join"},
        "depth": max(room.events[event_id].depth for event_id in last) + 1,
        "prev_events": last,
        "auth_events": [state[key] for key in keys[0 if is_named else 1 :] if key in state],
        "origin_server_ts": int(time.time() * 1000),
    }


def take_in(room: RoomFactory, pdu: JsonObject) -> Event:
    """Add another server's event to the room."""
    event = parse_event(pdu, room.version)
    room._add(event, event.prev_events, room._merged(event.prev_events))
    return event


def _pdus(events: Iterable[Event]) -> list[JsonObject]:
    return [event.pdu for event in events]


def _handler_of(remote: RemoteServer) -> type[BaseHTTPRequestHandler]:
    class Handling(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 300

        def do(self: Self) -> None:  # type: ignore[misc]
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = remote.answer(Asked(self.command, url.path, parse_qs(url.query), body))
            if answer is None:
                remote.is_over.wait()
                self.close_connection = True
                return
            status, content = (answer.status, answer.content) if isinstance(answer, Refusal) else (200, answer)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if isinstance(content, dict):
                content = json.dumps(content).encode()
            if isinstance(content, bytes):
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                for start in range(0, len(content), CHUNK_BYTES):
                    self.wfile.write(content[start : start + CHUNK_BYTES])
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in content:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

        do_GET = do_PUT = do_POST = do

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # our server hung up, as it may
                self.close_connection = True

        def finish(self) -> None:
            try:
                super().finish()
            except OSError:
                return

        def log_message(self, format: str, *args: Any) -> None:
            return

    return Handling
