"""Nothing of a private room is read or changed through another room, whatever a malicious server sends and asks.

The malicious server rules one room that our alice is in, and knows the IDs of all events of a private room that she
shares with an honest server, also of those events that we do not have yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeserver.accounts.access_tokens import Requester
from homeserver.ephemeral.receipts import Receipts
from homeserver.errors import InvalidParam, NotFound
from homeserver.protocol.compose import compose_event
from homeserver.protocol.events import Event, EventDraft
from homeserver.reading.history import History
from homeserver.storage.database import Database
from homeserver.storage.event_graph import Verdict
from homeserver.storage.integrity import find_problems
from tests.factories.rooms import RoomFactory, server_key
from tests.fakes.servers import OurServer, Servers

OURS, HONEST, EVIL = "ours.test:8448", "honest.test:8448", "evil.test:8448"
MALLORY, MARY, EVE = f"@mallory:{EVIL}", f"@mary:{HONEST}", f"@eve:{HONEST}"
SECRET = "SECRET"
V1 = "/_matrix/federation/v1"
EXAMPLES = 4
ATTACKS_MAX = 8
VERSIONS = pytest.mark.parametrize("version", ["1", "2", "6", "11", "12"])

Name: TypeAlias = tuple[str, int]
"""Which event of which room an attack names, as a number that is brought into range."""

names = st.lists(
    st.tuples(st.sampled_from(["private", "private", "coming", "coming", "own", "invented"]), st.integers(0, 1000)),
    max_size=3,
)


@dataclass(frozen=True)
class Attack:
    """An event that the malicious server makes in its own room, and what it answers when it is asked about it."""

    kind: str
    prev: Sequence[Name]
    auth: Sequence[Name]
    extra_auth: bool
    target: Name
    state: Sequence[Name]


attacks = st.lists(
    st.builds(
        Attack,
        kind=st.sampled_from(["m.room.message", "m.room.redaction", "m.room.topic", "m.room.member", "m.reaction"]),
        prev=names,
        auth=names,
        extra_auth=st.booleans(),
        target=names.map(lambda found: found[0] if found else ("coming", 0)),
        state=names,
    ),
    min_size=3,
    max_size=ATTACKS_MAX,
)


class Battle:
    """The two rooms, and who is in them."""

    def __init__(self, servers: Servers, ours: OurServer, version: str) -> None:
        self.ours = ours
        self.private = RoomFactory(version, HONEST, room_localpart="private")
        self.private.create("mary", join_rule="invite", history_visibility="shared", content={"x": SECRET})
        self.private.invite("mary", EVE)
        self.private.join(EVE, content={"displayname": SECRET})
        self.own = RoomFactory(version, EVIL, room_localpart="own")
        self.own.create("mallory")
        self.honest = servers.remote(HONEST, self.private)
        self.evil = servers.remote(EVIL, self.own)
        self.coming: list[Event] = []
        """Events of the private room that we get only after the attacks."""
        self.alice = self.carol = ""
        self.sent: list[Event] = []

    async def begin(self) -> None:
        self.alice, self.carol = await self.ours.user("alice"), await self.ours.user("carol")
        self.private.invite("mary", self.alice)
        await self.ours.join(self.alice, self.private.room_id, HONEST)
        for user in (self.alice, self.carol):
            await self.ours.join(user, self.own.room_id, EVIL)
        said = [self.private.send(MARY, f"{SECRET} {number}") for number in range(2)]
        said.append(self.private.state_event(MARY, "m.room.topic", {"topic": SECRET}))
        assert all(result == {} for result in (await self.honest.transaction(OURS, said)).values())
        coming = [self.private.send(EVE, f"{SECRET} before the ban"), self.private.ban(MARY, EVE)]
        coming.append(self.private.state_event(MARY, "m.room.name", {"name": SECRET}))
        coming.append(self.private.send(MARY, f"{SECRET} at last"))
        self.coming = coming

    def named(self, name: Name) -> str:
        """The ID of the event that an attack names."""
        where, number = name
        if where == "invented":
            return f"$invented{number}:{EVIL}" if self.own.version.references_with_hashes else "$" + f"{number:043}"
        coming = {event.event_id for event in self.coming}
        if where == "private":
            ids = [event_id for event_id in self.private.events if event_id not in coming]
        else:
            ids = [*coming] if where == "coming" else [*self.own.events]
        return sorted(ids)[number % len(ids)]

    # -- the attack ----------------------------------------------------------------------------------------------------

    async def send(self, attack: Attack) -> None:
        event = self._event(attack)
        self.sent.append(event)
        named = [self.named(name) for name in attack.state]

        async def state_ids(_: Request) -> Response:
            own = [event.event_id for event in self.own.state.values()]
            return JSONResponse({"pdu_ids": [*own, *named], "auth_chain_ids": named})

        async def nothing(_: Request) -> Response:
            return JSONResponse({"events": []})

        async def alone(_: Request) -> Response:
            return JSONResponse({"pdus": [], "auth_chain": []})

        self.evil.replaced.update(state_ids=state_ids, missing_events=nothing, event_auth=alone, state=alone)
        await self.evil.transaction(OURS, [event])
        # A receipt, too, may name what it likes.
        content = {self.own.room_id: {"m.read": {MALLORY: {"event_ids": [self.named(attack.target)], "data": {}}}}}
        await self.evil.transaction(OURS, edus=[{"edu_type": "m.receipt", "content": content}])

    def _event(self, attack: Attack) -> Event:
        room = self.own
        keys = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", MALLORY)]
        if room.version.room_id_is_create_hash:
            keys = keys[1:]
        auth = [self.named(name) for name in attack.auth] if attack.extra_auth else []
        auth = [*(room.state[key].event_id for key in keys), *auth]
        prev = [self.named(name) for name in attack.prev] or [room.extremities[-1]]
        target = self.named(attack.target)
        content: dict[str, Any] = {"body": "attack", "m.relates_to": {"rel_type": "m.thread", "event_id": target}}
        state_key = None
        if attack.kind in ("m.room.topic", "m.room.member"):
            state_key = "" if attack.kind == "m.room.topic" else MALLORY
            content = {"topic": "attack"} if attack.kind == "m.room.topic" else {"membership": "join"}
        return compose_event(
            EventDraft(attack.kind, MALLORY, content, state_key, target if "redaction" in attack.kind else None),
            room.version,
            room_id=room.room_id,
            prev_events=[(event_id, "x") for event_id in dict.fromkeys(prev)],
            auth_events=[(event_id, "x") for event_id in dict.fromkeys(auth)],
            depth=1_000 + len(self.sent),
            origin_server_ts=1_750_000_000_000 + len(self.sent),
            signer=server_key(EVIL),
            event_id_localpart=f"attack{len(self.sent)}",
        )

    # -- what must hold ------------------------------------------------------------------------------------------------

    async def check_that_nothing_is_read(self) -> None:
        names = [*self.private.events, *(event.event_id for event in self.sent)]
        for event_id in names:
            name = quote(event_id, safe="")
            for room in (self.own.room_id, self.private.room_id):
                room_id = quote(room, safe="")
                await self._check_answer("GET", f"{V1}/backfill/{room_id}?v={name}&limit=100")
                await self._check_answer("GET", f"{V1}/event_auth/{room_id}/{name}")
                await self._check_answer("GET", f"{V1}/state/{room_id}?event_id={name}")
                await self._check_answer("GET", f"{V1}/state_ids/{room_id}?event_id={name}")
                body = {"earliest_events": [], "latest_events": [event_id], "limit": 50}
                await self._check_answer("POST", f"{V1}/get_missing_events/{room_id}", body)
            await self._check_answer("GET", f"{V1}/event/{name}")
        for template in ("make_join", "make_leave", "make_knock"):
            uri = f"{V1}/{template}/{quote(self.private.room_id, safe='')}/{quote(MALLORY, safe='')}?ver=11"
            await self._check_answer("GET", uri)

    async def _check_answer(self, method: str, uri: str, body: Any = None) -> None:
        response = await self.evil.request(method, OURS, uri, body)
        assert response.status_code < 500, f"{uri}: {response.text}"
        assert SECRET not in response.text, f"{uri}: {response.text}"
        if response.status_code == 200:
            given = response.json()
            ids = {*given.get("pdu_ids", ()), *given.get("auth_chain_ids", ())}
            assert not ids & self.private.events.keys(), uri
            assert f'"room_id":"{self.private.room_id}"' not in response.text, uri

    async def check_that_no_client_reads(self) -> None:
        """Carol is in the room of the malicious server only."""
        requester = Requester(self.carol, "D")
        for event_id in self.private.events:
            with pytest.raises(NotFound):
                await self.ours.get(History).event(requester, self.own.room_id, event_id)
            with pytest.raises(InvalidParam):
                await self.ours.get(Receipts).find_event(self.carol, self.own.room_id, event_id)

    async def check_that_nothing_is_changed(self) -> None:
        results = await self.honest.transaction(OURS, self.coming)
        assert results == {event.event_id: {} for event in self.coming}
        head = await self.ours.head(self.private.room_id)
        assert dict(head.state) == dict(self.private.current_state)
        assert {extremity.event_id for extremity in head.extremities} == set(self.private.extremities)
        for event in self.coming:
            stored = await self.ours.event(event.event_id)
            assert stored is not None
            assert (stored.verdict, stored.redacted_by) == (Verdict.ACCEPTED, None)
        evading = self.private.send(EVE, "after the ban", prev_events=[self.coming[0].prev_events[0]])
        await self.honest.transaction(OURS, [evading])
        late = await self.ours.event(evading.event_id)
        assert late is not None
        assert late.verdict == Verdict.SOFT_FAILED
        for event_id in self.private.events:
            stored = await self.ours.event(event_id)
            assert stored is None or stored.redacted_by is None
        assert await self.ours.get(Database).read(find_problems) == []


@VERSIONS
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # to shrink a failure would start hundreds of servers
)
@given(plan=attacks)
def test_a_room_is_neither_read_nor_changed_through_another(
    version: str, plan: list[Attack], migrated_sqlite_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def story() -> None:
        async with Servers(tmp_path_factory.mktemp("rooms"), migrated_sqlite_file) as servers:
            battle = Battle(servers, await servers.ours(OURS), version)
            await battle.begin()
            for attack in plan:
                await battle.send(attack)
            await battle.check_that_nothing_is_read()
            await battle.check_that_no_client_reads()
            await battle.check_that_nothing_is_changed()
            await battle.check_that_nothing_is_read()

    asyncio.run(story())
