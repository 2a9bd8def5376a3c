"""The specification's list of endpoints, and of each that we have a request that succeeds."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.conformance.world import ALICE, BOB, CAROL, OURS, World, fine, path_of

VERSIONS = "/_matrix/client/versions"
"""It takes a token, and does without."""
SPEC = Path(__file__).parent / "spec"
MEDIA = {"msgtype": "m.text", "body": "hello"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of the specification's."""

    method: str
    path: str
    needs_token: bool
    request: Any
    """The JSON schema of its body, None where it has none."""
    answers: dict[str, Any]
    parameters: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


@cache
def endpoints(api: str) -> dict[str, Endpoint]:
    """By ``METHOD /path`` with the specification's names of the parameters."""
    details = json.loads((SPEC / f"{api}.json").read_text())
    found: dict[str, Endpoint] = {}
    with (SPEC / "endpoints.tsv").open(newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if row["api"] == api:
                name = f"{row['method']} {row['path']}"
                of = details[name]
                needs_token = "accessToken" in row["auth"] and row["path"] != VERSIONS
                found[name] = Endpoint(
                    row["method"], row["path"], needs_token, of["request"], of["answers"], of["parameters"]
                )
    return found


@dataclass(frozen=True, slots=True)
class Example:
    """A request that succeeds."""

    endpoint: Endpoint
    path: str
    body: Any = None
    token: str | None = "alice"
    status: int = 200

    @property
    def method(self) -> str:
        return self.endpoint.method


class Scene:
    """A room of alice's with bob in it, and what else requests name."""

    def __init__(self, world: World) -> None:
        self.world = world
        body = {"preset": "public_chat", "room_alias_name": "scene", "name": "Scene", "invite": [BOB]}
        self.room = fine(world.ask("POST", "/createRoom", body))["room_id"]
        fine(world.ask("POST", f"/rooms/{self.room}/join", {}, "bob"))
        self.message = fine(world.ask("PUT", f"/rooms/{self.room}/send/m.room.message/first", MEDIA))["event_id"]
        filter_path = f"/user/{ALICE}/filter"
        self.filter = fine(world.ask("POST", filter_path, {"room": {"timeline": {"limit": 5}}}))["filter_id"]
        for path in (f"/user/{ALICE}/account_data/a.type", f"/user/{ALICE}/rooms/{self.room}/account_data/a.type"):
            fine(world.ask("PUT", path, {"a": 1}))
        fine(world.ask("PUT", f"/profile/{ALICE}/displayname", {"displayname": "Alice"}))

    def fresh_room(self, *invited: str) -> str:
        """A room in which nothing else happens."""
        body = {"preset": "private_chat", "invite": list(invited)}
        room: str = fine(self.world.ask("POST", "/createRoom", body))["room_id"]
        return room

    def number(self) -> int:
        return self.world.number()

    def room_left_by_carol(self) -> str:
        room = self.fresh_room(CAROL)
        fine(self.world.ask("POST", f"/rooms/{room}/leave", {}, "carol"))
        return room

    def room_that_banned_carol(self) -> str:
        room = self.fresh_room()
        fine(self.world.ask("POST", f"/rooms/{room}/ban", {"user_id": CAROL}))
        return room

    def client_examples(self) -> Iterator[Example]:
        """One for each endpoint of the client API that we have; made one by one, as some need the one before."""
        for name, path, body, token in self._client_requests():
            endpoint = endpoints("client-server")[name]
            yield Example(endpoint, path, body, token if endpoint.needs_token else None)

    def _client_requests(self) -> Iterator[tuple[str, str, Any, str]]:
        v3, number = "/_matrix/client/v3", self.number()
        user, room = f"{v3}{path_of('user', ALICE)}", f"{v3}{path_of('rooms', self.room)}"
        in_room = f"{v3}/rooms/{{roomId}}"
        data, room_data = "/account_data/{type}", "/rooms/{roomId}/account_data/{type}"
        yield "GET /_matrix/client/versions", "/_matrix/client/versions", None, "alice"
        yield "GET /.well-known/matrix/client", "/.well-known/matrix/client", None, "alice"
        yield f"GET {v3}/capabilities", f"{v3}/capabilities", None, "alice"
        yield f"GET {v3}/account/whoami", f"{v3}/account/whoami", None, "alice"
        # accounts
        register = {"username": f"new{number}", "password": "wonderland", "auth": {"type": "m.login.dummy"}}
        register |= {"device_id": "D", "initial_device_display_name": "Phone", "inhibit_login": False}
        yield f"POST {v3}/register", f"{v3}/register", {**register, "refresh_token": True}, "alice"
        yield f"GET {v3}/register/available", f"{v3}/register/available?username=free", None, "alice"
        yield f"GET {v3}/login", f"{v3}/login", None, "alice"
        login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": f"new{number}"}}
        login |= {"password": "wonderland", "device_id": "E", "refresh_token": True}
        yield f"POST {v3}/login", f"{v3}/login", {**login, "initial_device_display_name": "Phone"}, "alice"
        tokens = fine(self.world.ask("POST", "/login", login, None))
        yield f"POST {v3}/refresh", f"{v3}/refresh", {"refresh_token": tokens["refresh_token"]}, "alice"
        yield f"POST {v3}/logout", f"{v3}/logout", {}, self._token_to_lose()
        yield f"POST {v3}/logout/all", f"{v3}/logout/all", {}, self._token_to_lose("carol")
        self.world.run(self.world.new_token("carol"))
        # profiles, account data, filters
        profile = f"{v3}{path_of('profile', ALICE)}"
        yield f"GET {v3}/profile/{{userId}}", profile, None, "alice"
        yield f"GET {v3}/profile/{{userId}}/{{keyName}}", f"{profile}/displayname", None, "alice"
        named = {"displayname": f"Alice {number}"}
        yield f"PUT {v3}/profile/{{userId}}/{{keyName}}", f"{profile}/displayname", named, "alice"
        yield f"DELETE {v3}/profile/{{userId}}/{{keyName}}", f"{profile}/org.example.gone", None, "alice"
        yield f"PUT {v3}/user/{{userId}}{data}", f"{user}/account_data/a.type", {"a": number}, "alice"
        yield f"GET {v3}/user/{{userId}}{data}", f"{user}/account_data/a.type", None, "alice"
        of_room = f"{user}{path_of('rooms', self.room)}/account_data/a.type"
        yield f"PUT {v3}/user/{{userId}}{room_data}", of_room, {"a": number}, "alice"
        yield f"GET {v3}/user/{{userId}}{room_data}", of_room, None, "alice"
        yield f"POST {v3}/user/{{userId}}/filter", f"{user}/filter", WHOLE_FILTER, "alice"
        yield f"GET {v3}/user/{{userId}}/filter/{{filterId}}", f"{user}/filter/{self.filter}", None, "alice"
        # rooms and aliases
        yield f"POST {v3}/createRoom", f"{v3}/createRoom", whole_room(number), "alice"
        old = path_of("rooms", self.fresh_room(BOB))
        upgrade = {"new_version": "12", "additional_creators": [BOB]}
        yield f"POST {in_room}/upgrade", f"{v3}{old}/upgrade", upgrade, "alice"
        alias = path_of("directory", "room", f"#alias{number}:{OURS}")
        yield f"PUT {v3}/directory/room/{{roomAlias}}", f"{v3}{alias}", {"room_id": self.room}, "alice"
        yield f"GET {v3}/directory/room/{{roomAlias}}", f"{v3}{alias}", None, "alice"
        yield f"DELETE {v3}/directory/room/{{roomAlias}}", f"{v3}{alias}", None, "alice"
        yield f"GET {in_room}/aliases", f"{room}/aliases", None, "alice"
        # memberships
        why = {"reason": "because"}
        yield f"POST {v3}/join/{{roomIdOrAlias}}", f"{v3}{path_of('join', f'#scene:{OURS}')}", why, "carol"
        yield f"POST {in_room}/leave", f"{room}/leave", why, "carol"
        yield f"POST {in_room}/forget", f"{room}/forget", {}, "carol"
        yield f"POST {in_room}/join", f"{room}/join", why, "carol"
        yield f"POST {in_room}/kick", f"{room}/kick", {"user_id": CAROL, **why}, "alice"
        yield f"POST {in_room}/ban", f"{room}/ban", {"user_id": CAROL, **why}, "alice"
        yield f"POST {in_room}/unban", f"{room}/unban", {"user_id": CAROL, **why}, "alice"
        yield f"POST {in_room}/invite", f"{room}/invite", {"user_id": CAROL, **why}, "alice"
        yield f"GET {v3}/joined_rooms", f"{v3}/joined_rooms", None, "alice"
        # events
        sent = f"{room}/send/m.room.message/t{number}"
        yield f"PUT {in_room}/send/{{eventType}}/{{txnId}}", sent, MEDIA, "alice"
        state = f"{room}/state/m.room.topic/"
        yield f"PUT {in_room}/state/{{eventType}}/{{stateKey}}", state, {"topic": f"about {number}"}, "alice"
        yield f"GET {in_room}/state/{{eventType}}/{{stateKey}}", state, None, "alice"
        yield f"GET {in_room}/state", f"{room}/state", None, "alice"
        redact = f"{room}{path_of('redact', self.message)}/r{number}"
        yield f"PUT {in_room}/redact/{{eventId}}/{{txnId}}", redact, why, "alice"
        yield f"GET {in_room}/event/{{eventId}}", f"{room}{path_of('event', self.message)}", None, "alice"
        yield f"GET {in_room}/messages", f"{room}/messages?dir=b&limit=50", None, "alice"
        yield f"GET {in_room}/members", f"{room}/members", None, "alice"
        yield f"GET {in_room}/joined_members", f"{room}/joined_members", None, "alice"
        receipt = f"{room}{path_of('receipt', 'm.read', self.message)}"
        yield f"POST {in_room}/receipt/{{receiptType}}/{{eventId}}", receipt, {"thread_id": "main"}, "alice"
        typing = f"{room}{path_of('typing', ALICE)}"
        yield f"PUT {in_room}/typing/{{userId}}", typing, {"typing": True, "timeout": 30_000}, "alice"
        yield f"GET {v3}/sync", f"{v3}/sync", None, "carol"  # who is in few rooms

    def _token_to_lose(self, localpart: str = "alice") -> str:
        return self.world.run(self.world.new_token(localpart, f"LOST{self.number()}"))


EVENTS: dict[str, Any] = {
    "limit": 5, "types": ["m.*"], "not_types": ["x"], "senders": [ALICE], "not_senders": [BOB],
}  # fmt: skip
ROOM_EVENTS: dict[str, Any] = {
    **EVENTS, "rooms": ["!a:b.c"], "not_rooms": ["!b:b.c"], "contains_url": False, "lazy_load_members": True,
    "include_redundant_members": True, "unread_thread_notifications": True,
}  # fmt: skip
WHOLE_FILTER: dict[str, Any] = {
    "event_fields": ["type", "content.body"],
    "event_format": "client",
    "presence": EVENTS,
    "account_data": EVENTS,
    "room": {
        "rooms": ["!a:b.c"], "not_rooms": ["!b:b.c"], "include_leave": True, "state": ROOM_EVENTS, "timeline": {},
        "ephemeral": {}, "account_data": {},
    },
}  # fmt: skip


def whole_room(number: int) -> dict[str, Any]:
    """Every field of createRoom that we take."""
    return {
        "visibility": "private",
        "room_alias_name": f"room{number}",
        "name": "A room",
        "topic": "About",
        "invite": [BOB],
        "room_version": "11",
        "creation_content": {"m.federate": True, "type": "m.space"},
        "initial_state": [{"type": "org.example.state", "state_key": "key", "content": {"a": 1}}],
        "preset": "private_chat",
        "is_direct": True,
        "power_level_content_override": {"events_default": 0, "users": {ALICE: 100}, "events": {"m.room.name": 50}},
    }


def under(example: Example, prefix: str) -> Example:
    """The same request under ``r0`` or ``v1``."""
    return replace(example, path=example.path.replace("/_matrix/client/v3", f"/_matrix/client/{prefix}"))


def quoted(text: str) -> str:
    return quote(text, safe="")
