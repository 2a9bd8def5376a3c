"""The services that rooms are made of, on a real database: one process of the server ``example.org``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select

from homeserver.clock import Clock
from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.governed_events import GovernedEvents
from homeserver.graph.imports import ImportWrites, RoomImports
from homeserver.graph.judgement import Judge
from homeserver.graph.other_processes import OtherProcesses
from homeserver.graph.out_of_band import OutOfBandMemberships
from homeserver.graph.send import Sender
from homeserver.graph.state import RoomHeads, StateReader
from homeserver.graph.under_way import UnderWay
from homeserver.graph.waiting_events import WaitingEvents
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.membership.inviting import Inviting
from homeserver.membership.joins import Joins
from homeserver.membership.member_profiles import MemberProfiles
from homeserver.membership.membership import Memberships
from homeserver.membership.restricted_joins import RestrictedJoins
from homeserver.notifier import Notifier
from homeserver.protocol.compose import add_signature
from homeserver.protocol.events import Event, EventDraft
from homeserver.protocol.identifiers import server_of
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.reading.client_events import ClientEvents
from homeserver.rooms.aliases import RoomAliases
from homeserver.rooms.creation import PRESETS, RoomCreation, RoomRequest
from homeserver.rooms.old_rooms import OldRooms
from homeserver.rooms.personal_settings import PersonalSettings
from homeserver.rooms.upgrades import RoomUpgrades
from homeserver.storage import accounts, streams
from homeserver.storage.appends import TransactionKey
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, events_by_nid
from homeserver.storage.graph_writes import GraphWriter
from homeserver.storage.tables import events, rooms
from homeserver.storage.user_rooms import Standing
from tests.factories.rooms import RoomFactory, server_key
from tests.fakes.clock import FakeClock

SERVER_NAME = "example.org"
ALICE, BOB, CAROL, DAVE = (f"@{name}:{SERVER_NAME}" for name in ("alice", "bob", "carol", "dave"))
ZOE = "@zoe:other.org"


def is_local(user_id: str) -> bool:
    return user_id.endswith(f":{SERVER_NAME}")


@dataclass
class FakeRemoteRooms:
    """Other servers, as far as memberships need them: they sign invitations, and remember what they were asked."""

    joins: list[tuple[str, str, JsonObject, list[str]]] = field(default_factory=list)
    leaves: list[tuple[str, str, str | None]] = field(default_factory=list)
    invites: int = 0
    refusal: Exception | None = None
    before_signing: Callable[[], Awaitable[object]] | None = None

    async def join(self, room_id: str, user_id: str, content: JsonObject, servers: Sequence[str]) -> None:
        self.joins.append((room_id, user_id, content, list(servers)))
        if self.refusal is not None:
            raise self.refusal

    async def leave(self, standing: Standing, user_id: str, reason: str | None) -> None:
        self.leaves.append((standing.room_id, user_id, reason))

    async def send(
        self, working: WorkingHead, invitation: NewEvent, append: Callable[[NewEvent], Awaitable[None]]
    ) -> None:
        self.invites += 1
        if self.refusal is not None:
            raise self.refusal
        if self.before_signing is not None:
            await self.before_signing()
        target = invitation.event.state_key or ""
        invitation.event = add_signature(invitation.event, server_key(server_of(target)))
        await append(invitation)


@dataclass
class FakeDirectory:
    """The aliases of other servers."""

    answers: dict[str, JsonObject | Exception] = field(default_factory=dict)

    async def query_directory(self, destination: str, room_alias: str) -> JsonObject:
        answer = self.answers[room_alias]
        if isinstance(answer, Exception):
            raise answer
        return answer


class CoreServer:
    """One process of the server. ``start`` lets it follow what other processes on the database do."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self.database = database
        self.clock = clock or FakeClock()
        self.key = server_key(SERVER_NAME)
        self.remote = FakeRemoteRooms()
        self.directory = FakeDirectory()
        self.events = events = Events(database)
        self.heads = heads = RoomHeads(database, events, is_local)
        self.states = StateReader(database, events)
        self.others = OtherProcesses(database, heads, events)
        self.notifier = Notifier(database.read_now(streams.current_position), self.others.load_changes)
        self.graph = GraphWriter(is_local)
        self.writers = RoomWriters(database, heads, events, self.states, self.notifier, self.graph, is_local)
        writes = ImportWrites(database, self.graph, self.clock, SERVER_NAME)
        under_way = UnderWay(database, self.clock)
        waiting = WaitingEvents(database, self.clock)
        self.imports = RoomImports(heads, events, self.notifier, self.writers, under_way, writes, waiting)
        self.out_of_band = OutOfBandMemberships(database, events, self.notifier, self.clock)
        self.governed = GovernedEvents("enforce", database)
        self.sender = Sender(self.writers, self.key, self.clock, self.governed)
        self.profiles = MemberProfiles(database, is_local)
        self.restricted = RestrictedJoins(heads, is_local)
        settings = PersonalSettings(database, heads, self.notifier)
        joins = Joins(
            database,
            heads,
            self.sender,
            self.profiles,
            self.restricted,
            self.remote,
            SERVER_NAME,
            settings.take_along,
        )
        inviting = Inviting(database, heads, self.writers, self.sender, self.profiles, self.remote, SERVER_NAME)
        self.memberships = Memberships(
            database, heads, self.sender, self.profiles, joins, self.remote, inviting, SERVER_NAME
        )
        self.aliases = RoomAliases(database, heads, self.sender, self.directory, SERVER_NAME)
        self.creation = RoomCreation(
            self.writers, self.sender, self.memberships, self.aliases, self.profiles, self.key, self.clock
        )
        self.upgrades = RoomUpgrades(
            OldRooms(database, heads, self.sender, self.governed, self.key),
            self.writers,
            self.sender,
            self.profiles,
            settings,
            self.clock,
            SERVER_NAME,
        )
        self.client_events = ClientEvents(events)
        self.judge = Judge(events, self.states)

    # -- what happens --------------------------------------------------------------------------------------------------

    async def create_room(
        self, creator: str = ALICE, *, version: str = "11", preset: str = "private_chat", **request: Any
    ) -> str:
        return (
            await self.creation.create(creator, RoomRequest(ROOM_VERSIONS[version], PRESETS[preset], **request))
        ).room_id

    async def send(
        self, room_id: str, sender: str = ALICE, body: str = "hello", txn: TransactionKey | None = None
    ) -> StoredEvent:
        return await self.sender.send(room_id, EventDraft("m.room.message", sender, {"body": body}), txn)

    async def set_state(
        self, room_id: str, event_type: str, content: JsonObject, state_key: str = "", sender: str = ALICE
    ) -> StoredEvent:
        return await self.sender.send(room_id, EventDraft(event_type, sender, content, state_key))

    async def redact(self, room_id: str, target: str, sender: str = ALICE) -> StoredEvent:
        return await self.sender.send(room_id, EventDraft("m.room.redaction", sender, {}, redacts=target))

    async def append(self, *new: NewEvent) -> list[StoredEvent]:
        """Append events of one room as one job."""

        async def job(_: WorkingHead) -> Sequence[NewEvent]:
            return new

        return await self.writers.submit(new[0].event.room_id, job)

    async def adopt(self, room: RoomFactory) -> None:
        """Take over a room without forks that a factory has made."""

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            for event in list(room.events.values()):
                await working.take_in(NewEvent(event, working.head.snapshot))
            return []

        await self.writers.create(room.room_id, room.version, job, self.clock.now_ms())

    async def receive(self, *events: Event) -> list[StoredEvent]:
        """Append events whose ancestors are here, judged as if another server had sent them; all wait at once."""

        async def submit(event: Event) -> StoredEvent:
            async def job(working: WorkingHead) -> Sequence[NewEvent]:
                before = await self.judge.state_before(working, event)
                ruling = await self.judge.judge(working, event, before)
                return [NewEvent(event, before, ruling.verdict, ruling.reason)]

            return (await self.writers.submit(event.room_id, job))[0]

        return list(await asyncio.gather(*map(submit, events)))

    # -- what is there -------------------------------------------------------------------------------------------------

    async def state(self, room_id: str) -> dict[tuple[str, str], Event]:
        head = await self.heads.get(room_id)
        return await self.heads.state_events(head, head.state)

    async def membership(self, room_id: str, user_id: str) -> str | None:
        head = await self.heads.get(room_id)
        member = await self.heads.state_event(head, "m.room.member", user_id)
        return member.membership if member else None


def add_users(database: Database, *user_ids: str) -> None:
    """Accounts of our users."""
    with database.begin() as connection:
        for user_id in user_ids:
            accounts.create_user(connection, user_id, None, is_admin=False, now_ms=0)


@contextlib.contextmanager
def running(url: str, **options: Any) -> Iterator[CoreServer]:
    """A process of the server on the database of this URL."""
    database = Database(url)
    try:
        yield CoreServer(database, **options)
    finally:
        database.close()


def events_of(server: CoreServer, room_id: str) -> list[Event]:
    """All events of a room, in the order of their positions."""
    nid = select(rooms.c.room_nid).where(rooms.c.room_id == room_id).scalar_subquery()
    statement = select(events.c.event_nid).where(events.c.room_nid == nid)
    nids = server.database.read_now(lambda connection: list(connection.scalars(statement)))
    stored = server.database.read_now(events_by_nid, nids)
    return [e.event for e in sorted(stored, key=lambda e: e.stream_position or 0)]


def count_rooms(server: CoreServer) -> int:
    return server.database.read_now(lambda c: c.scalar(select(func.count()).select_from(rooms))) or 0
