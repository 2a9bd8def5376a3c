"""The lists of the governance API page by page, while their rooms change. On each kind of database: it is SQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from homeserver.ephemeral import who_has_read
from homeserver.ephemeral.who_has_read import WhoHasRead
from homeserver.errors import InvalidParam
from homeserver.protocol.json_types import JsonObject
from homeserver.reading.listings import PageRequest, token_of
from homeserver.reading.visible_events import VisibleEvents
from homeserver.storage.database import Database
from tests.factories.rooms import RoomFactory
from tests.fakes.governed_server import GovernedServer, tell
from tests.fakes.homeserver import ALICE, BOB, SERVER_NAME
from tests.fakes.reading_server import ReadingServer, user

ALL = PageRequest()
GROUPS = ("owners", "moderators", "members")
NAMES = [
    None,
    "",
    "a",
    "A",
    "b",
    "é",
    "\0",
    "\ufdd0",
    "\ufdd01",
    "\U0001f600",
    "a",
    "z" * 250,
    "z" * 250 + "b",
    "z" * 251,
]


def person(number: int) -> str:
    return f"@{number:02}:other.org"


def crowd(levels: JsonObject, *, count: int = 24) -> RoomFactory:
    """A room of people with all sorts of names, and Alice in it."""
    room = RoomFactory("11", "other.org")
    room.create(person(0), power_levels=levels)
    for number in range(count):
        name = NAMES[number % len(NAMES)]
        room.join(person(number), content={} if name is None else {"displayname": name})
    room.join(ALICE)
    return room


Ask = Callable[[PageRequest], Awaitable[Any]]


async def pages(ask: Ask, limit: int) -> AsyncIterator[Any]:
    """Part after part of a list."""
    answer = await ask(PageRequest(limit))
    while "next" in answer:
        yield answer
        answer = await ask(PageRequest(limit, answer["next"]))
    yield answer


def in_groups(answer: Any) -> list[tuple[str, Any]]:
    return [(group, holder) for group in GROUPS for holder in answer[group]]


@pytest.mark.parametrize(
    "levels",
    [
        {"users": {person(0): 100, person(1): 50, person(2): 50, person(3): 150, person(4): 10}},
        {"users_default": 50, "users": {person(0): 100, person(1): 0, person(2): 0, person(3): 100, person(4): 60}},
        {"users_default": 100, "users": {person(0): 100, person(1): 0, person(2): 50, person(3): 50, person(4): 150}},
        {"users": {person(0): 100, "@nobody:other.org": 50}},
    ],
    ids=["members by default", "moderators by default", "owners by default", "who is not there"],
)
def test_parts_of_the_roles_make_the_whole(database: Database, levels: JsonObject) -> None:
    async def story(server: GovernedServer) -> None:
        room = crowd(levels)
        await server.adopt(room)

        async def ask(page: PageRequest) -> Any:
            return await server.roles.of_room(ALICE, room.room_id, page)

        whole = await ask(ALL)
        assert len(in_groups(whole)) == 25
        for group in GROUPS:
            names = [holder["display_name"] or "" for holder in whole[group]]
            plain = [name for name in names if len(name) <= 250 and not set(name) & {"\0", "\ufdd0"}]
            assert plain == sorted(plain)
        for limit in (1, 2, 7, 25, 1000):
            answers = [answer async for answer in pages(ask, limit)]
            assert [len(in_groups(answer)) for answer in answers[:-1]] == [limit] * (len(answers) - 1)
            assert [entry for answer in answers for entry in in_groups(answer)] == in_groups(whole)
            assert {answer["my_role"] for answer in answers} == {whole["my_role"]}

    tell(database, story)


def test_who_stays_has_a_role_once_while_others_come_and_go(database: Database) -> None:
    async def story(server: GovernedServer) -> None:
        room = crowd({"users": {person(0): 100, person(1): 50, person(2): 50}})
        room.event(person(0), "m.room.join_rules", {"join_rule": "public"}, "")
        await server.adopt(room)

        async def ask(page: PageRequest) -> Any:
            return await server.roles.of_room(ALICE, room.room_id, page)

        seen: list[str] = []
        gone: set[str] = set()
        async for answer in pages(ask, 3):
            seen += [holder["user_id"] for _, holder in in_groups(answer)]
            number = 3 + len(gone)
            gone.add(person(number))
            leaves = room.leave(person(number))
            await server.receive(leaves, room.join(f"@new{number}:other.org", content={"displayname": "m" * number}))
        stayed = {person(number) for number in range(24)} - gone | {ALICE}
        assert len(gone) > 5
        assert sorted(user_id for user_id in seen if user_id in stayed) == sorted(stayed)
        assert len(seen) == len(set(seen))

    tell(database, story)


def test_who_is_invited_or_banned_is_listed_once_while_others_are(database: Database) -> None:
    async def story(server: GovernedServer) -> None:
        room = crowd({"users": {person(0): 100}}, count=1)
        for number in range(1, 10):
            room.invite(person(0), person(number))
            room.ban(person(0), person(number + 10))
        await server.adopt(room)

        async def ask(page: PageRequest) -> Any:
            invitations = await server.invitations.of_room(ALICE, room.room_id, page)
            return {"users": [i["user_id"] for i in invitations["invitations"]], **invitations}

        async def ask_for_bans(page: PageRequest) -> Any:
            bans = await server.bans.of_room(ALICE, room.room_id, page)
            return {"users": [b["user_id"] for b in bans["bans"]], **bans}

        async def walk(ask: Ask, change: Callable[[int], Any]) -> list[str]:
            seen: list[str] = []
            number = 0
            async for answer in pages(ask, 2):
                seen += answer["users"]
                number += 1
                await server.receive(*change(number))
            assert len(seen) == len(set(seen))
            return seen

        # The oldest one is invited anew, another one takes it up, and somebody new is asked in.
        seen = await walk(
            ask,
            lambda number: [
                room.join(person(7)) if number == 1 else room.invite(person(0), person(1)),
                room.invite(person(0), f"@new{number}:other.org"),
            ],
        )
        assert seen == [person(number) for number in range(9, 1, -1)]
        seen = await walk(
            ask_for_bans,
            lambda number: [
                room.unban(person(0), person(11)) if number == 1 else room.ban(person(0), person(11)),
                room.ban(person(0), f"@new{number}:other.org"),
            ],
        )
        assert seen == [person(number) for number in range(19, 11, -1)]

    tell(database, story)


def test_a_redacted_name_is_not_sorted_by(database: Database) -> None:
    async def story(server: GovernedServer) -> None:
        room = crowd({"users": {ALICE: 100}}, count=0)
        named = room.join(BOB, content={"displayname": "zz"})
        room.join("@a:other.org", content={"displayname": "y"})
        await server.adopt(room)

        async def order(page: PageRequest) -> list[str]:
            return [h["user_id"] for _, h in in_groups(await server.roles.of_room(ALICE, room.room_id, page))]

        for page in (ALL, PageRequest(9)):
            assert await order(page) == [person(0), ALICE, "@a:other.org", BOB]
        await server.redact(room.room_id, named.event_id)
        for page in (ALL, PageRequest(9)):
            assert await order(page) == [person(0), ALICE, BOB, "@a:other.org"]

    tell(database, story)


@pytest.mark.parametrize(
    "token",
    [
        token_of((0, "\0", "@\0")),
        token_of((2, "\ufdd0", "")),
        token_of((2, "z" * 5000, "z" * 5000)),
        token_of((-1, "", "")),
        token_of((-(2**53) + 1, "", "")),
        token_of((3, "", "")),
        token_of((2**53 - 1, "", "")),
    ],
)
def test_tokens_of_places_where_nobody_stands(database: Database, token: str) -> None:
    async def story(server: GovernedServer) -> None:
        room = await server.create_room()
        answer = await server.roles.of_room(ALICE, room, PageRequest(5, token))
        assert len(in_groups(answer)) <= 1
        for ask in (server.invitations.of_room, server.bans.of_room):
            with pytest.raises(InvalidParam):
                await ask(ALICE, room, PageRequest(5, token))
            for place in ((2**53 - 1, 2**53 - 1), (-(2**53) + 1, 0)):
                found: Any = await ask(ALICE, room, PageRequest(5, token_of(place)))
                assert list(found.values()) == [[]]

    tell(database, story)


class Readers(ReadingServer):
    """A server that says who has read what."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        visible = VisibleEvents(database, self.events, self.heads)
        self.who = WhoHasRead(database, self.heads, self.events, self.states, visible, self.receipts, SERVER_NAME)

    async def have_read(self, room: str, event_id: str, *readers: str, thread_id: str | None = None) -> None:
        for reader in readers:
            await self.receipts.post(user(reader), room, "m.read", event_id, thread_id)

    def asking(self, room: str, event_id: str) -> Ask:
        async def ask(page: PageRequest) -> Any:
            return await self.who.of_event(user("alice"), room, event_id, page)

        return ask


CROWD = [f"reader{number:02}" for number in range(20)]


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_who_has_read_is_listed_once_while_all_read_on(
    database: Database, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(who_has_read, "RECEIPTS_PER_READ_MIN", 3)

    async def story() -> None:
        server = Readers(database)
        room = await server.create_room("alice", join=CROWD[:15])
        event = await server.send(room, "alice", "read this")
        for late in CROWD[15:]:
            await server.join(room, late)
        later = [await server.send(room, "alice", f"and this {number}") for number in range(4)]
        there = [reader for number, reader in enumerate(CROWD[:15]) if number % 4]
        for number, reader in enumerate(there):
            # Of several threads: which one it was is of no importance.
            await server.have_read(room, later[number % 4].event_id, reader, thread_id="main")
            await server.have_read(room, later[number % 3].event_id, reader)
        # Who came later has read what the receipt names, and not what was before.
        await server.have_read(room, later[0].event_id, CROWD[16])
        await server.have_read(room, event.event_id, CROWD[17])
        expected = sorted(map(user, [*there, CROWD[17]]))
        seen: list[Any] = []
        sizes: list[int] = []
        async for answer in pages(server.asking(room, event.event_id), limit):
            seen += [r["user_id"] for r in answer["receipts"]]
            sizes.append(len(answer["receipts"]))
            more = await server.send(room, "alice", "more")
            await server.have_read(room, more.event_id, *there)
        assert seen == expected
        assert sizes[:-1] == [limit] * (len(sizes) - 1)
        whole = await server.asking(room, event.event_id)(ALL)
        assert sorted(r["user_id"] for r in whole["receipts"]) == expected

    asyncio.run(story())
