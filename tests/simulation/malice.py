"""A server that signs what it likes and answers what it likes, and its user, who is a member of a room like any other.

To add an attack: write a method ``do_<attack>`` of ``Mallory`` and name it in ``ATTACKS``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import orjson
from starlette.types import Receive, Scope, Send

from homeserver.errors import HomeserverError
from homeserver.federation.request_authentication import sign_request
from homeserver.protocol.authorization import auth_event_keys
from homeserver.protocol.canonical_json import encode_canonical_json
from homeserver.protocol.compose import add_signature, compose_event, finish_template
from homeserver.protocol.event_format import parse_event
from homeserver.protocol.events import Event, EventDraft, StateKey
from homeserver.protocol.hashes import reference_hash, unpadded_base64
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.protocol.signatures import sign_json
from tests.factories.rooms import START_TS, server_key
from tests.fakes.servers import FAR_FUTURE_TS
from tests.simulation.network import Answer, Host
from tests.simulation.virtual_loop import Life
from tests.simulation.world import World

NAME = "mallory.test:8448"
MALLORY, MATE = f"@mallory:{NAME}", f"@mate:{NAME}"
V1, V2 = "/_matrix/federation/v1", "/_matrix/federation/v2"
ATTACKS = (
    "talk",
    "hide_the_past",
    "fork",
    "equivocate",
    "reach_into_another_room",
    "backdate",
    "begin_anew",
    "falsify",
    "withhold",
    "give_half_a_state",
    "invite_into_another_version",
    "change_levels",
)
HISTORY_MAX = 50
"""How many events of a room's history it gives at a time."""

NOT_WITHSTOOD_YET = frozenset[str]()
"""Attacks that are known to succeed: they are left out unless the run is strict. To be empty."""


class Room:
    """What Mallory knows of a room."""

    def __init__(self, version: RoomVersion, room_id: str) -> None:
        self.version = version
        self.room_id = room_id
        self.events: dict[str, Event] = {}
        self.state: dict[StateKey, str] = {}
        """The newest that was heard of for each key, whatever it is worth."""
        self.state_at_join: list[str] = []

    def add(self, event: Event) -> None:
        """Take note of an event."""
        self.events.setdefault(event.event_id, event)
        if event.is_state:
            self.state[event.key] = event.event_id

    def ends(self) -> list[Event]:
        """The events that nothing known follows."""
        followed = {prev for event in self.events.values() for prev in event.prev_events}
        return [event for event in self.events.values() if event.event_id not in followed][-5:]


class Mallory:
    """See above. ``knows`` are rooms of which it was given anything, whether it should have been or not."""

    def __init__(self, world: World, *, strict: bool) -> None:
        self._world = world
        self._chance = random.Random(f"{world.seed} malice")
        self._attacks = [name for name in ATTACKS if strict or name not in NOT_WITHSTOOD_YET]
        self._key = server_key(NAME)
        self._numbers = iter(range(1, 1_000_000))
        self.rooms: dict[str, Room] = {}
        self.learned: dict[str, set[str]] = {}
        """The IDs of events that it was sent or given, by room."""
        self._life = Life(NAME)
        self._hidden: set[str] = set()
        """Events that it does not show."""
        self._is_honest = False
        world.network.hosts[NAME] = Host(self._serve, self._life)

    # -- joining and telling -------------------------------------------------------------------------------------------

    async def join(self, room_id: str, resident: str, user_id: str = MALLORY) -> bool:
        """Join a room through an honest server."""
        path = f"{V1}/make_join/{quote(room_id)}/{quote(user_id)}?" + "&".join(f"ver={v}" for v in ROOM_VERSIONS)
        made = await self._ask("GET", resident, path)
        if made.status != 200:
            return False
        answer = orjson.loads(made.body)
        version = ROOM_VERSIONS[answer["room_version"]]
        ts = self._now()
        event = finish_template(answer["event"], version, self._key, ts, f"m{next(self._numbers)}")
        sent = await self._ask(
            "PUT", resident, f"{V2}/send_join/{quote(room_id)}/{quote(event.event_id)}", orjson.loads(event.json)
        )
        if sent.status != 200:
            return False
        room = self.rooms.setdefault(room_id, Room(version, room_id))
        answer = orjson.loads(sent.body)
        for pdu in [*answer["auth_chain"], *answer["state"]]:
            self._learn(room, pdu)
        room.state_at_join = [e.event_id for e in room.events.values() if e.is_state]
        room.add(parse_event(answer.get("event") or orjson.loads(event.json), version, room_id=room_id))
        return True

    async def attack(self) -> None:
        """One attack after the other, until it is cancelled."""
        while True:
            await asyncio.sleep(self._chance.uniform(0.2, 3))
            if self.rooms:
                room = self.rooms[self._chance.choice(sorted(self.rooms))]
                name = self._chance.choice(self._attacks)
                self._world.trace.note(f"mallory: {name} in {room.room_id}")
                try:
                    await getattr(self, f"do_{name}")(room)
                except (ConnectionError, HomeserverError, KeyError, IndexError):
                    continue

    def reform(self) -> None:
        """Answer honestly from now on, as far as it was ever willing to show an event."""
        self._is_honest = True

    # -- attacks -------------------------------------------------------------------------------------------------------

    async def do_talk(self, room: Room) -> None:
        """Be a member like any other."""
        event = self._event(room, self._message())
        room.add(event)
        await self._push(room, [event], self._everybody())

    async def do_hide_the_past(self, room: Room) -> None:
        """Follow an event that does not exist, and say what the state before it was."""
        ends = [*room.ends(), "$" + self._invented(room)]
        state = self._chance.choice([self._message(), EventDraft("m.room.topic", MALLORY, {"topic": "mine"}, "")])
        await self._push(room, [self._event(room, state, prev=ends)], self._everybody())

    async def do_fork(self, room: Room) -> None:
        """Say two things that exclude each other, at the same place."""
        ends = room.ends()
        drafts = [EventDraft("m.room.topic", MALLORY, {"topic": str(number)}, "") for number in range(2)]
        events = [self._event(room, draft, prev=ends) for draft in drafts]
        for event in events:
            room.add(event)
        await self._push(room, events, self._everybody())

    async def do_equivocate(self, room: Room) -> None:
        """Tell each server something else."""
        ends = room.ends()
        for server in self._everybody():
            draft = EventDraft("m.room.topic", MALLORY, {"topic": f"for {server}"}, "")
            event = self._event(room, draft, prev=ends)
            room.add(event)
            await self._push(room, [event], [server])

    async def do_reach_into_another_room(self, room: Room) -> None:
        """Name an event of a room that it is not in, and ask for what is behind it."""
        strange = self._strange_events(room)
        if not strange:
            return
        named = self._chance.choice(strange)
        target = self._chance.choice(self._everybody())
        prev: list[Event | str] = [*room.ends(), named]
        auth = self._chance.choice([None, [*self._auth(room, self._message()), named]])
        draft = self._message()
        if self._chance.random() < 0.3:
            draft = EventDraft("m.room.redaction", MALLORY, {}, redacts=named.event_id)
            prev = list(room.ends())
        event = self._event(room, draft, prev=prev, auth=auth)
        await self._push(room, [event], [target])
        room_id = quote(room.room_id)
        body = {"earliest_events": [], "latest_events": [event.event_id, named.event_id], "limit": 20, "min_depth": 0}
        for method, path, content in (
            ("GET", f"{V1}/backfill/{room_id}?v={quote(event.event_id)}&v={quote(named.event_id)}&limit=50", None),
            ("POST", f"{V1}/get_missing_events/{room_id}", body),
            ("GET", f"{V1}/event/{quote(named.event_id)}", None),
            ("GET", f"{V1}/event_auth/{room_id}/{quote(event.event_id)}", None),
            ("GET", f"{V1}/event_auth/{room_id}/{quote(named.event_id)}", None),
            ("GET", f"{V1}/state/{room_id}?event_id={quote(event.event_id)}", None),
            ("GET", f"{V1}/state/{room_id}?event_id={quote(named.event_id)}", None),
        ):
            answer = await self._ask(method, target, path, content)
            if answer.status == 200:
                self._note_learned(orjson.loads(answer.body))

    async def do_backdate(self, room: Room) -> None:
        """Say something that belongs to long ago, at another depth."""
        old = self._chance.choice(list(room.events.values()))
        depth = self._chance.choice([0, 1, old.depth + 1, 2**53 - 1])
        event = self._event(room, self._message(), prev=[old], depth=depth, ts=START_TS - 10**9)
        room.add(event)
        await self._push(room, [event], self._everybody())

    async def do_begin_anew(self, room: Room) -> None:
        """Follow nothing at all."""
        draft = self._chance.choice([self._message(), EventDraft("m.room.member", MATE, {"membership": "join"}, MATE)])
        await self._push(room, [self._event(room, draft, prev=[])], self._everybody())

    async def do_falsify(self, room: Room) -> None:
        """Pass on the latest event that it got with other content."""
        event = list(room.events.values())[-1]
        pdu = {**orjson.loads(event.json), "content": {**event.content, "body": "false", "displayname": "false"}}
        await self._push(room, [pdu], self._everybody())

    async def do_withhold(self, room: Room) -> None:
        """Follow an event that it shows to nobody."""
        secret = self._event(room, EventDraft("m.room.topic", MALLORY, {"topic": "secret"}, ""))
        self._hidden.add(secret.event_id)
        room.events[secret.event_id] = secret
        event = self._event(room, self._message(), prev=[secret])
        self._hidden.add(event.event_id)
        room.events.pop(secret.event_id)
        await self._push(room, [event], self._everybody())

    async def do_give_half_a_state(self, room: Room) -> None:
        """Have a user join and speak, and show the join to one server alone, as if the others could not get through."""
        draft = EventDraft("m.room.member", MATE, {"membership": "join", "n": next(self._numbers)}, MATE)
        joins = self._event(room, draft)
        self._hidden.add(joins.event_id)
        room.add(joins)
        between = self._event(room, self._message(), prev=[joins])
        room.add(between)
        speaks = self._event(room, EventDraft("m.room.message", MATE, {"body": "hello"}), prev=[between])
        room.add(speaks)
        first, *others = self._everybody()
        self._is_honest = True  # in all but the one event
        await self._push(room, [speaks], others)
        await self._push(room, [joins, between, speaks], [first])
        self._is_honest = False
        self._hidden.discard(joins.event_id)

    async def do_invite_into_another_version(self, room: Room) -> None:
        """Invite somebody to some room, and lie about its version."""
        await self.lie_about(self._chance.choice(self._world.rooms), self._chance.choice(self._world.users))

    async def lie_about(self, room_id: str, target: str) -> None:
        """Invite a user to a room that Mallory has no part in, as if it were of another version."""
        if self._world.version == "12" or "invite_into_another_version" not in self._attacks:
            return  # in version 12 the room ID tells
        others = [name for name in ROOM_VERSIONS if name not in (self._world.version, "12")]
        lie = ROOM_VERSIONS[self._chance.choice(others)]
        event = compose_event(
            EventDraft("m.room.member", MALLORY, {"membership": "invite"}, target),
            lie,
            room_id=room_id,
            prev_events=[("$" + "x" * 43, "")],
            auth_events=[],
            depth=5,
            origin_server_ts=self._now(),
            signer=self._key,
            event_id_localpart=f"m{next(self._numbers)}",
        )
        body = {"room_version": lie.identifier, "event": orjson.loads(event.json), "invite_room_state": []}
        server = self._world.server_of(target).name
        answer = await self._ask("PUT", server, f"{V2}/invite/{quote(room_id)}/{quote(event.event_id)}", body)
        self._world.trace.note(f"mallory invites {target} to {room_id} version {lie.identifier}: {answer.status}")

    async def do_change_levels(self, room: Room) -> None:
        """Take power, where it has any, in two ways at the same place."""
        current = room.events[room.state["m.room.power_levels", ""]].content
        ends = room.ends()
        events = []
        for level in (50, 100):
            somebody = self._chance.choice(self._world.users)
            users = {**current.get("users", {}), MALLORY: level, somebody: self._chance.choice([0, 50])}
            draft = EventDraft("m.room.power_levels", MALLORY, {**current, "users": users}, "")
            events.append(self._event(room, draft, prev=ends))
        for event in events:
            room.events[event.event_id] = event
        await self._push(room, events, self._everybody())

    # -- events --------------------------------------------------------------------------------------------------------

    def _event(
        self,
        room: Room,
        draft: EventDraft,
        *,
        prev: Iterable[Event | str] | None = None,
        auth: Iterable[Event] | None = None,
        depth: int | None = None,
        ts: int | None = None,
    ) -> Event:
        before = room.ends() if prev is None else list(prev)
        cited = self._auth(room, draft) if auth is None else list(auth)
        if depth is None:
            depth = 1 + max((event.depth for event in before if isinstance(event, Event)), default=0)
        return compose_event(
            draft,
            room.version,
            room_id=room.room_id,
            prev_events=[self._reference(room, event) for event in before],
            auth_events=[self._reference(room, event) for event in cited],
            depth=depth,
            origin_server_ts=self._now() if ts is None else ts,
            signer=self._key,
            event_id_localpart=f"m{next(self._numbers)}",
        )

    def _auth(self, room: Room, draft: EventDraft) -> list[Event]:
        keys = auth_event_keys(draft.type, draft.sender, draft.state_key, draft.content, room.version)
        return [room.events[room.state[key]] for key in keys if key in room.state]

    def _reference(self, room: Room, event: Event | str) -> tuple[str, str]:
        if isinstance(event, str) or not room.version.references_with_hashes:
            return (event if isinstance(event, str) else event.event_id, "")
        return (event.event_id, unpadded_base64(reference_hash(event.pdu, event.version)))

    def _message(self) -> EventDraft:
        return EventDraft("m.room.message", MALLORY, {"body": f"mallory {next(self._numbers)}"})

    def _invented(self, room: Room) -> str:
        name = "".join(self._chance.choice("abcdefgh") for _ in range(43))
        return f"{name}:{NAME}" if room.version.references_with_hashes else name

    def _strange_events(self, room: Room) -> list[Event]:
        """Events of rooms that it is not in, whose IDs it has somehow come to know."""
        found: list[Event] = []
        for room_id in self._world.rooms:
            if room_id not in self.rooms:
                for server in self._world.servers:
                    if server.is_running:
                        found += [e.original for e in server.graph(room_id).values() if e.event.version is room.version]
        return found

    def _everybody(self) -> list[str]:
        names = [server.name for server in self._world.servers]
        self._chance.shuffle(names)
        return names

    def _now(self) -> int:
        return START_TS + int(asyncio.get_running_loop().time() * 1000)

    # -- asking and answering ------------------------------------------------------------------------------------------

    async def _push(self, room: Room, events: Iterable[Event | dict[str, Any]], servers: Iterable[str]) -> None:
        pdus = [event if isinstance(event, dict) else orjson.loads(event.json) for event in events]
        for server in servers:
            body = {"origin": NAME, "origin_server_ts": self._now(), "pdus": pdus}
            try:
                answer = await self._ask("PUT", server, f"{V1}/send/m{next(self._numbers)}", body)
                self._world.trace.note(f"mallory -> {server}: {answer.status} {answer.body.decode()}")
            except ConnectionError:
                continue

    async def _ask(self, method: str, server: str, target: str, body: Any = None) -> Answer:
        authorization = sign_request(self._key, method, target, server, body)
        content = b"" if body is None else encode_canonical_json(body)
        headers = [(b"authorization", authorization.encode()), (b"host", server.encode())]
        async with asyncio.timeout(60):
            return await self._world.network.ask(server, method, target, headers, content)

    def _learn(self, room: Room, pdu: dict[str, Any]) -> None:
        try:
            event = parse_event(pdu, room.version, room_id=room.room_id)
        except HomeserverError:
            return
        room.add(event)
        self.learned.setdefault(room.room_id, set()).add(event.event_id)

    def _note_learned(self, answer: Any) -> None:
        """Look through an answer for events of any room."""
        if isinstance(answer, dict):
            room_id = answer.get("room_id")
            if isinstance(room_id, str) and "signatures" in answer and answer.get("type") != "m.room.create":
                self.learned.setdefault(room_id, set()).add(f"{answer.get('type')} of {answer.get('sender')}")
            for value in answer.values():
                self._note_learned(value)
        elif isinstance(answer, list):
            for value in answer:
                self._note_learned(value)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        target = scope["raw_path"].decode() + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        status, answer = self._answer(scope["method"], target, message.get("body", b""))
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": orjson.dumps(answer)})

    def _answer(self, method: str, target: str, body: bytes) -> tuple[int, Any]:
        split = urlsplit(target)
        parts = [unquote(part) for part in split.path.split("/")[1:]]
        query = parse_qs(split.query)
        if parts[:3] == ["_matrix", "key", "v2"]:
            keys = {self._key.key_id: {"key": unpadded_base64(bytes(self._key.verify_key))}}
            answer = {"server_name": NAME, "verify_keys": keys, "valid_until_ts": FAR_FUTURE_TS}
            return 200, sign_json({**answer, "old_verify_keys": {}}, self._key)
        what, *named = parts[3:]
        room = self.rooms.get(named[0]) if named else None
        if what == "send":
            for pdu in orjson.loads(body).get("pdus", []):
                room = self.rooms.get(str(pdu.get("room_id")))
                if room is not None:
                    self._learn(room, pdu)
                else:
                    self._note_learned(pdu)
            return 200, {"pdus": {}}
        if what == "invite" and room is not None:
            invitation = orjson.loads(body)
            event = parse_event(invitation["event"], room.version, room_id=room.room_id)
            return 200, {"event": orjson.loads(add_signature(event, self._key).json)}
        if what == "event":
            found = next((r.events[named[0]] for r in self.rooms.values() if named[0] in r.events), None)
            if found is None or found.event_id in self._hidden or not self._is_willing():
                return 502, {"errcode": "M_UNKNOWN", "error": "later"}
            return 200, {"origin": NAME, "origin_server_ts": 1, "pdus": [orjson.loads(found.json)]}
        if room is None:
            return 404, {"errcode": "M_NOT_FOUND", "error": "?"}
        if what == "get_missing_events":
            latest = orjson.loads(body)["latest_events"]
            return 200, {"events": self._shown(self._before(room, latest)) if self._is_willing() else []}
        if what == "backfill":
            start = query.get("v", [])
            # The events that are named come first: of a long history, what is oldest is left out.
            named_ones = [room.events[event_id] for event_id in start if event_id in room.events]
            shown = self._shown([*named_ones, *reversed(self._before(room, start))])[:HISTORY_MAX]
            return 200, {"origin": NAME, "origin_server_ts": 1, "pdus": shown if self._is_willing() else []}
        if what == "event_auth":
            return 200, {"auth_chain": self._shown(e for e in room.events.values() if e.is_state)}
        if what in ("state_ids", "state"):
            ids = self._state_for(room)
            if what == "state_ids":
                return 200, {"pdu_ids": ids, "auth_chain_ids": room.state_at_join}
            events = [room.events[event_id] for event_id in ids]
            return 200, {"pdus": self._shown(events), "auth_chain": self._shown(room.events.values())}
        return 404, {"errcode": "M_NOT_FOUND", "error": "?"}

    def _is_willing(self) -> bool:
        return self._is_honest or self._chance.random() < 0.4

    def _state_for(self, room: Room) -> list[str]:
        """The state before an event, it says: now, when it joined, or a part of it."""
        now = list(room.state.values())
        if self._is_honest:
            return now
        return self._chance.choice([now, room.state_at_join, now[::2], room.state_at_join[:3]])

    def _shown(self, events: Iterable[Event]) -> list[Any]:
        return [orjson.loads(event.json) for event in events if event.event_id not in self._hidden]

    @staticmethod
    def _before(room: Room, latest: list[str]) -> list[Event]:
        """The nearest events before some others, the farthest first."""
        found: dict[str, Event] = {}
        todo = [prev for name in latest if name in room.events for prev in room.events[name].prev_events]
        while todo and len(found) < HISTORY_MAX:
            event = room.events.get(todo.pop(0))
            if event is not None and event.event_id not in found:
                found[event.event_id] = event
                todo.extend(event.prev_events)
        return list(reversed(found.values()))
