"""What is sent about a room's members besides state changes: its summary, and the members that lazy loading adds.

https://spec.matrix.org/v1.19/client-server-api/#lazy-loading-room-members
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from homeserver.graph.events import Events
from homeserver.graph.state import RoomHeads
from homeserver.storage import sync_streams
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent
from homeserver.sync.loaded_events import LoadedEvents
from homeserver.sync.news import News
from homeserver.sync.sent_members import Members
from homeserver.sync.summaries import (
    HEROES,
    NAME_TYPES,
    events_to_examine,
    has_changed,
    is_name,
    may_move_heroes,
    relevant_changes,
    summary,
)
from homeserver.sync.timelines import RoomDraft
from homeserver.sync.updates import RoomUpdate, SyncRequest


@dataclass(slots=True)
class _Counted:
    """A room and the numbers of its summary, which is to be sent."""

    draft: RoomDraft
    joined: int
    invited: int
    has_name: bool
    heroes: list[str] | None = None


class MembersAndSummaries:
    """Adds summaries, and the member events that lazily loading clients need."""

    def __init__(self, database: Database, heads: RoomHeads, events: Events) -> None:
        self._database = database
        self._heads = heads
        self._events = events

    async def add(
        self,
        request: SyncRequest,
        news: News,
        drafts: Sequence[RoomDraft],
        known_members: Mapping[str, Members],
        loaded: LoadedEvents,
    ) -> None:
        """Fill ``members`` of each draft, and the summary of its update where that has changed."""
        counted: list[_Counted] = []
        for draft in drafts:
            if draft.news.has_left:
                continue
            if draft.news.state is not None or draft.news.changes:
                counted += await self._count(news, draft, loaded)
        nameless = [room for room in counted if not room.has_name]
        wanted: dict[int, set[str]] = {}
        if request.is_lazy:
            for draft in drafts:
                if users := _wanted_members(request, draft, known_members.get(draft.room_id, {})):
                    wanted[draft.news.room_nid] = users
        if nameless or wanted:
            await self._add_members(request, news, drafts, nameless, wanted, known_members, loaded)
        for room in counted:
            room.draft.update.summary = summary(room.joined, room.invited, room.heroes)

    async def _count(self, news: News, draft: RoomDraft, loaded: LoadedEvents) -> list[_Counted]:
        """A list of the room if its summary has changed, otherwise an empty list."""
        is_whole = draft.news.state is not None
        changes = relevant_changes(draft.news.changes)
        if not is_whole and not changes:
            return []
        if not is_whole:
            examined = events_to_examine(changes)
            await loaded.load(examined)
            await loaded.load(e.replaces_nid for e in loaded.all(examined) if e.replaces_nid is not None)
        is_news = is_whole or has_changed(changes, loaded.get)
        room = await self._counts(news, draft, loaded)
        if not is_news and not room.has_name:
            is_news = may_move_heroes(changes, room.joined + room.invited - 1)
        return [room] if is_news else []

    async def _counts(self, news: News, draft: RoomDraft, loaded: LoadedEvents) -> _Counted:
        counts = draft.news.counts
        if counts is not None:
            await loaded.load(draft.news.names)
            has_name = any(is_name(stored.event) for stored in loaded.all(draft.news.names))
            return _Counted(draft, *counts, has_name)
        assert news.heads_hold
        head = await self._heads.get(draft.room_id)
        names = await self._heads.state_events(head, [(event_type, "") for event_type in NAME_TYPES])
        return _Counted(draft, len(head.joined), len(head.invited), any(is_name(event) for event in names.values()))

    async def _add_members(
        self,
        request: SyncRequest,
        news: News,
        drafts: Sequence[RoomDraft],
        nameless: Sequence[_Counted],
        wanted: Mapping[int, set[str]],
        known_members: Mapping[str, Members],
        loaded: LoadedEvents,
    ) -> None:
        nids: dict[int, Members] = {}
        if wanted and news.heads_hold:
            for draft in drafts:
                if users := wanted.get(draft.news.room_nid):
                    nids[draft.news.room_nid] = await self._members_of_head(draft.room_id, users, loaded)
            wanted = {}
        if nameless or wanted:
            room_nids = [room.draft.news.room_nid for room in nameless]
            found, heroes = await self._database.read(_read_members, request.user_id, wanted, room_nids)
            nids.update(found)
            for room in nameless:
                members = heroes[room.draft.news.room_nid]
                room.heroes = [user_id for user_id, _ in members]
                if request.is_lazy:
                    # "the membership events for the heroes MUST be included in the state, unless they are redundant"
                    nids.setdefault(room.draft.news.room_nid, {}).update(members)
        if request.is_lazy:
            await loaded.load(nid for members in nids.values() for nid in members.values())
            for draft in drafts:
                is_new = draft.news.is_fresh or request.full_state
                known = {} if is_new else known_members.get(draft.room_id, {})
                await _choose_members(request, draft, nids.get(draft.news.room_nid, {}), known, loaded)

    async def _members_of_head(self, room_id: str, user_ids: Iterable[str], loaded: LoadedEvents) -> Members:
        head = await self._heads.get(room_id)
        event_ids = [i for user_id in user_ids if (i := head.state.get(("m.room.member", user_id))) is not None]
        stored = (await self._events.by_id(room_id, event_ids)).values()
        for event in stored:
            loaded.put(event)
        return member_events(stored)


def _wanted_members(request: SyncRequest, draft: RoomDraft, known: Members) -> set[str]:
    """The users whose member events the client needs to show the timeline, unless it has them."""
    wanted = {seen.stored.event.sender for seen in draft.update.timeline}
    if draft.news.state is not None:
        wanted.add(request.user_id)
        if request.state_after:
            wanted.update(member_events(seen.stored for seen in draft.update.timeline))
    elif known and not draft.news.is_fresh and not request.sends_redundant_members:
        # The member events that the client has are still right unless they have changed since.
        changed = {change.key[1] for change in draft.news.changes if change.key[0] == "m.room.member"}
        wanted = {user_id for user_id in wanted if user_id not in known or user_id in changed}
    return wanted


async def _choose_members(
    request: SyncRequest, draft: RoomDraft, nids: Members, known: Members, loaded: LoadedEvents
) -> None:
    """Choose the member events of these users that the client needs, as of the start (or end) of the timeline."""
    timeline = frozenset[int]() if request.state_after else draft.timeline_nids
    for user_id, event_nid in nids.items():
        found: int | None = event_nid
        while found is not None:
            await loaded.load([found])
            stored = loaded.get(found)
            if stored is not None and found not in timeline and (stored.stream_position or 0) <= draft.news.upto:
                break
            found = stored.replaces_nid if stored is not None else None
        # "Clients may request that redundant membership events are always included"
        if found is not None and (request.sends_redundant_members or known.get(user_id) != found):
            draft.members[user_id] = found


def _read_members(
    connection: Connection, user_id: str, wanted: Mapping[int, Iterable[str]], nameless: Iterable[int]
) -> tuple[dict[int, Members], dict[int, list[tuple[str, int]]]]:
    """The member events of the wanted users, and the heroes of the rooms without a name, by room."""
    members = sync_streams.member_events(connection, wanted)
    heroes = {room_nid: sync_streams.heroes(connection, room_nid, user_id, HEROES) for room_nid in nameless}
    return members, heroes


def member_events(stored: Iterable[StoredEvent]) -> Members:
    """The member events among some events: numeric IDs by user. Of several for one user, the last counts."""
    return {
        event.event.state_key: event.event_nid
        for event in stored
        if event.event.type == "m.room.member" and event.event.state_key is not None
    }


def members_in(update: RoomUpdate, *, state_after: bool) -> Members:
    """The member events that a client knows after this update, by user."""
    in_timeline = member_events(seen.stored for seen in update.timeline)
    in_state = member_events(update.state)
    return {**in_timeline, **in_state} if state_after else {**in_state, **in_timeline}
