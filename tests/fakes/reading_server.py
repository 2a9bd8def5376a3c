"""A server with everything that clients read from, and a short way to let things happen in its rooms."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from homeserver.clock import Clock
from homeserver.ephemeral.receipts import Receipts
from homeserver.ephemeral.typing import Typing
from homeserver.federation.outbound_edus import Receipt
from homeserver.graph.append import RoomWriters
from homeserver.graph.events import Events
from homeserver.graph.imports import ImportWrites, RoomImports
from homeserver.graph.missing_events import Filled
from homeserver.graph.other_processes import OtherProcesses
from homeserver.graph.out_of_band import OutOfBandMemberships
from homeserver.graph.send import Sender
from homeserver.graph.state import RoomHeads, StateReader
from homeserver.graph.under_way import UnderWay
from homeserver.graph.waiting_events import WaitingEvents
from homeserver.graph.working_head import NewEvent, WorkingHead
from homeserver.notifier import Change, Notifier, Stream
from homeserver.protocol.compose import compose_event
from homeserver.protocol.events import EventDraft
from homeserver.protocol.filters import parse_filter
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.reading.client_events import ClientEvents
from homeserver.reading.history import History
from homeserver.reading.paging import Pages
from homeserver.reading.room_access import RoomAccess
from homeserver.reading.state_and_members import StateAndMembers
from homeserver.reading.tokens import parse_sync_token
from homeserver.reading.visible_events import VisibleEvents
from homeserver.storage import streams
from homeserver.storage.account_data import put_account_data
from homeserver.storage.appends import TransactionKey
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.storage.graph_writes import GraphWriter
from homeserver.storage.history_lanes import Gap
from homeserver.sync.composing import Composer
from homeserver.sync.gathering import Gathering
from homeserver.sync.quick import Quick
from homeserver.sync.recent_changes import RecentChanges
from homeserver.sync.rendering import SyncRendering
from homeserver.sync.service import Sync
from homeserver.sync.updates import SyncRequest
from homeserver.sync.views import Views
from tests.factories.rooms import server_key
from tests.fakes.clock import FakeClock

SERVER_NAME = "example.org"
VERSION = ROOM_VERSIONS["11"]


@dataclass
class RecordingDelivery:
    """Remembers what other servers were to be told."""

    receipts: list[Receipt] = field(default_factory=list)
    typing: list[tuple[str, str, bool]] = field(default_factory=list)

    async def send_receipt(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)

    async def send_typing(self, room_id: str, user_id: str, typing: bool) -> None:
        self.typing.append((room_id, user_id, typing))


class RecordingNotices:
    """What a process says to others, which hear it at once (``peers``)."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.peers: list[Typing] = []

    def send(self, key: tuple[str, ...], body: str) -> None:
        self.sent.append(body)
        for typing in self.peers:
            typing.hear(body)

    async def stop(self) -> None:
        return None


@dataclass
class NoBackfill:
    """Finds nothing, and remembers that it was asked."""

    asked: list[tuple[str, list[str]]] = field(default_factory=list)
    answer: Filled = Filled.UNANSWERED

    async def fill(self, room_id: str, gaps: Sequence[Gap], seconds: float) -> Filled:
        self.asked.append((room_id, [gap.missing_event_id for gap in gaps]))
        return self.answer


_processes = itertools.count()


def connect(*servers: ReadingServer) -> None:
    """Have processes hear each other's notices, as they do through PostgreSQL."""
    for server in servers:
        server.notices.peers = [other.typing for other in servers if other is not server]


class ReadingServer:
    """One process of the server ``example.org``."""

    def __init__(self, database: Database, clock: Clock | None = None, *, receipts_enabled: bool = True) -> None:
        self.database = database
        self.clock = clock or FakeClock()
        self.delivery = RecordingDelivery()
        self.backfiller = NoBackfill()
        self.key = server_key(SERVER_NAME)
        self.events = events = Events(database)
        self.heads = heads = RoomHeads(database, events, is_local)
        self.states = StateReader(database, events)
        others = OtherProcesses(database, heads, events)
        self.notifier = Notifier(database.read_now(streams.current_position), others.load_changes)
        graph = GraphWriter(is_local)
        self.writers = RoomWriters(database, heads, events, self.states, self.notifier, graph, is_local)
        under_way = UnderWay(database, self.clock)
        writes = ImportWrites(database, graph, self.clock, SERVER_NAME)
        waiting = WaitingEvents(database, self.clock)
        self.imports = RoomImports(heads, events, self.notifier, self.writers, under_way, writes, waiting)
        self.out_of_band = OutOfBandMemberships(database, events, self.notifier, self.clock)
        self.sender = Sender(self.writers, self.key, self.clock)
        self.client_events = ClientEvents(events)
        self.visible = VisibleEvents(database, events, heads)
        self.access = RoomAccess(database, heads, events)
        pages = Pages(database, events, self.visible, self.backfiller, self.clock)
        self.history = History(pages, events, self.states, self.client_events, self.visible, self.access, self.clock)
        self.state_and_members = StateAndMembers(
            database, heads, events, self.states, self.client_events, self.access, self.clock
        )
        self.notices = RecordingNotices()
        self.typing = Typing(
            self.notifier,
            heads,
            self.delivery,
            self.notices,
            self.clock,
            process=int(database.name[:4], 16) + next(_processes) & 0xFFFF,
            is_local=is_local,
        )
        self.receipts = Receipts(
            database, self.notifier, heads, events, self.delivery, self.clock, enabled=receipts_enabled
        )
        recent, views = RecentChanges(self.notifier), Views()
        self.sync_service = Sync(
            database,
            self.notifier,
            self.clock,
            events,
            Quick(database, events, self.receipts, recent, views),
            Gathering(database, recent, views, with_receipts=receipts_enabled),
            Composer(database, heads, events, self.states, self.visible, self.typing, self.receipts),
            SyncRendering(self.client_events, self.clock),
        )
        self._rooms = 0

    # -- what happens --------------------------------------------------------------------------------------------------

    async def create_room(
        self,
        creator: str = "alice",
        *,
        join: Sequence[str] = (),
        name: str | None = None,
        visibility: str | None = None,
        join_rule: str = "public",
    ) -> str:
        self._rooms += 1
        room_id = f"!room{self._rooms}:{SERVER_NAME}"
        creator = user(creator)
        drafts = [
            EventDraft("m.room.member", creator, {"membership": "join", "displayname": creator[1:6]}, creator),
            EventDraft("m.room.power_levels", creator, {"users": {creator: 100}}, ""),
            EventDraft("m.room.join_rules", creator, {"join_rule": join_rule}, ""),
        ]
        if name is not None:
            drafts.append(EventDraft("m.room.name", creator, {"name": name}, ""))
        if visibility is not None:
            drafts.append(EventDraft("m.room.history_visibility", creator, {"history_visibility": visibility}, ""))

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            create = compose_event(
                EventDraft("m.room.create", creator, {"room_version": VERSION.identifier}, ""),
                VERSION,
                room_id=room_id,
                prev_events=[],
                auth_events=[],
                depth=1,
                origin_server_ts=self.clock.now_ms(),
                signer=self.key,
            )
            await working.take_in(NewEvent(create, working.head.snapshot))
            for draft in drafts:
                await working.take_in(await self.sender.compose(working, draft))
            return []

        await self.writers.create(room_id, VERSION, job, self.clock.now_ms())
        for member in join:
            await self.join(room_id, member)
        return room_id

    async def send(self, room_id: str, sender: str, body: str = "hello", **content: Any) -> StoredEvent:
        return await self.event(room_id, sender, "m.room.message", {"msgtype": "m.text", "body": body, **content})

    async def event(
        self,
        room_id: str,
        sender: str,
        event_type: str,
        content: JsonObject,
        state_key: str | None = None,
        txn: TransactionKey | None = None,
    ) -> StoredEvent:
        return await self.sender.send(room_id, EventDraft(event_type, user(sender), content, state_key), txn)

    async def member(self, room_id: str, sender: str, target: str, membership: str, **content: Any) -> StoredEvent:
        return await self.event(room_id, sender, "m.room.member", {"membership": membership, **content}, user(target))

    async def join(self, room_id: str, who: str) -> StoredEvent:
        return await self.member(room_id, who, who, "join", displayname=who)

    async def leave(self, room_id: str, who: str) -> StoredEvent:
        return await self.member(room_id, who, who, "leave")

    async def invite(self, room_id: str, sender: str, target: str) -> StoredEvent:
        return await self.member(room_id, sender, target, "invite")

    async def redact(self, room_id: str, sender: str, target: StoredEvent) -> StoredEvent:
        draft = EventDraft("m.room.redaction", user(sender), {}, redacts=target.event_id)
        return await self.sender.redact(room_id, draft)

    async def append(self, room_id: str, new: Iterable[NewEvent]) -> list[StoredEvent]:
        """Events that were made elsewhere, as they are."""
        events = list(new)

        async def job(working: WorkingHead) -> Sequence[NewEvent]:
            return events

        return await self.writers.submit(room_id, job)

    async def set_account_data(self, who: str, event_type: str, content: JsonObject, room_id: str = "") -> None:
        position = await self.database.write(put_account_data, user(who), room_id, event_type, orjson.dumps(content))
        self.notifier.publish([Change(position, Stream.ACCOUNT_DATA, room_id or None, (user(who),))])

    # -- what clients see ----------------------------------------------------------------------------------------------

    def request(
        self,
        who: str,
        since: str | None = None,
        *,
        device: str = "DEVICE",
        filter: JsonObject | None = None,
        full_state: bool = False,
        state_after: bool = False,
    ) -> SyncRequest:
        token = None if since is None else parse_sync_token(since)
        return SyncRequest(
            user_id=user(who),
            device_id=device,
            since=None if token is None else token.position,
            typing_since=0 if token is None else token.ephemeral,
            filter=parse_filter(filter or {}),
            full_state=full_state,
            state_after=state_after,
        )

    async def sync(self, who: str, since: str | None = None, *, timeout_ms: int = 0, **options: Any) -> JsonObject:
        body = await self.sync_service.sync(self.request(who, since, **options), timeout_ms, _still_there)
        parsed: JsonObject = orjson.loads(body)
        return parsed


async def _still_there() -> None:
    return None


def user(name: str) -> str:
    """A whole user ID, of this server unless the name says otherwise."""
    return name if name.startswith("@") else f"@{name}:{SERVER_NAME}"


def is_local(user_id: str) -> bool:
    return user_id.endswith(f":{SERVER_NAME}")


def joined(response: JsonObject, room_id: str) -> JsonObject:
    """What a response says of a room that the user is in."""
    found: JsonObject = response["rooms"]["join"][room_id]
    return found


def bodies(room: JsonObject) -> list[str]:
    """The texts of the messages in a timeline."""
    return [e["content"].get("body", "") for e in room["timeline"]["events"] if e["type"] == "m.room.message"]


def types(events: Iterable[JsonObject]) -> list[str]:
    return [event["type"] for event in events]
