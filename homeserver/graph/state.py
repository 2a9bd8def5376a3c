"""The current and past states of rooms.

``RoomHead`` is the state of a room at its forward extremities; ``RoomHeads`` caches recent ones. ``StateReader`` reads
past states and resolves those of branches that merge.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from immutables import Map
from sqlalchemy import Connection

from homeserver.caches import WeightedCache
from homeserver.errors import NotFound
from homeserver.federation.caching import SingleFlight
from homeserver.graph.events import LONG_KEY_BYTES, Events
from homeserver.graph.full_conflicts import cited_keys, full_conflict
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.identifiers import server_of
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion, StateResolution
from homeserver.protocol.server_acls import SERVER_ACL, ServerAcl
from homeserver.protocol.state_resolution import MissingEvents, resolve, split_states
from homeserver.storage import auth_chains, event_graph, room_state
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict

STATE_ENTRY_BYTES = 300
"""The approximate memory of a state entry: its key, its event ID, and its place in the map."""
MEMBER_BYTES = 120
"""The approximate memory of a user in the list of a room's members."""
HEADS_BYTES_MAX = 128 * 2**20
"""How much memory the cached heads of rooms may use."""
SNAPSHOT_BYTES_MAX = 64 * 2**20
"""How much memory cached past states may use. Consecutive states share most of it, so they really use less."""
ACLS_BYTES_MAX = 16 * 2**20
"""How much memory the server ACLs of rooms may use. One of 64 KiB takes half a megabyte to a megabyte."""
OUTDATED_BYTES_MAX = 4 * 2**20
"""How much memory the record of rooms changed by other processes may use, which protects reads that are still running.
"""
LOOKUPS_BYTES_MAX = 8 * 2**20
"""How much memory cached single entries of past states may use."""
LOOKUP_BYTES = 250
RESOLVED_BYTES_MAX = 64 * 2**20
"""How much memory cached results of state resolutions may use."""
RESOLVED_TOGETHER_MAX = 10
"""How many forward extremities are resolved with each other (see ``RoomHead.is_exact``), and how many one of our events
may follow; the protocol allows 20."""
RESOLUTION_ROUNDS_MAX = 50
"""How often a resolution may request more events before it counts as broken."""

EMPTY_STATE: Map[StateKey, str] = Map()


class StateSnapshot:
    """A state of a room: its map, and its state group once it is stored.

    ``group`` is None while the event that leads to it is not committed; ``base`` and ``delta`` then say what has to be
    stored.
    """

    __slots__ = ("base", "delta", "group", "state")

    def __init__(
        self,
        state: Map[StateKey, str],
        group: int | None = None,
        base: StateSnapshot | None = None,
        delta: Mapping[StateKey, str | None] | None = None,
    ) -> None:
        self.state = state
        self.group = group
        self.base = base
        self.delta = delta

    def changed(self, changes: Mapping[StateKey, str | None]) -> StateSnapshot:
        """This state with some entries replaced (None: removed)."""
        changes = {key: event_id for key, event_id in changes.items() if self.state.get(key) != event_id}
        if not changes:
            return self
        with self.state.mutate() as mutation:
            for key, event_id in changes.items():
                if event_id is None:
                    del mutation[key]
                else:
                    mutation[key] = event_id
            state = mutation.finish()
        return StateSnapshot(state, None, self, changes)

    def towards(self, state: Mapping[StateKey, str]) -> StateSnapshot:
        """Another state, to be stored as its difference to this one."""
        changes: dict[StateKey, str | None] = {k: v for k, v in state.items() if self.state.get(k) != v}
        changes.update({key: None for key in self.state if key not in state})
        return self.changed(changes)

    @classmethod
    def whole(cls, state: Mapping[StateKey, str]) -> StateSnapshot:
        """A state that shares nothing with other states."""
        return cls(Map(state), None, None, dict(state))

    def stored_as(self, group: int) -> None:
        """Note that the transaction that stores this state was committed."""
        self.group = group
        self.base = self.delta = None


@dataclass(frozen=True, slots=True)
class Extremity:
    """A forward extremity: an event whose effect on the room's state no other event carries yet."""

    event_id: str
    event_nid: int
    """0 until it is committed."""
    depth: int
    after: StateSnapshot | int
    """The state after it, or its state group."""
    is_late: bool = False
    """Whether known events follow it that were judged before it arrived, by a state without it.

    Its effect then counts in the state of the room and before later events. No event of ours names it: those that
    follow it are named, and it need not be known everywhere how it came about.
    """

    @property
    def state_identity(self) -> StateSnapshot | int:
        """A value that is equal for two extremities with the same state, stored or not."""
        if isinstance(self.after, int) or self.after.group is None:
            return self.after
        return self.after.group


@dataclass(frozen=True, slots=True)
class RoomHead:
    """A room at its forward extremities."""

    room_id: str
    room_nid: int
    version: RoomVersion
    generation: int
    extremities: tuple[Extremity, ...]
    snapshot: StateSnapshot
    joined: Map[str, bool]
    """The joined users of all servers."""
    joined_local: Map[str, bool]
    """The joined users of this server."""
    joined_servers: Map[str, int]
    """The servers with joined users, and how many each has."""
    invited: Map[str, bool]
    """Users with a pending invitation."""

    @property
    def state(self) -> Map[StateKey, str]:
        """The current state: ``(type, state_key)`` to event ID."""
        return self.snapshot.state

    def is_followed_completely_by(self, prev_events: Collection[str]) -> bool:
        """Whether an event with these prev_events follows all forward extremities. The late ones are not named."""
        named = set(prev_events)
        return (
            bool(named)
            and all(extremity.is_late or extremity.event_id in named for extremity in self.extremities)
            and named.issubset(extremity.event_id for extremity in self.extremities)
        )

    @property
    def is_exact(self) -> bool:
        """Whether the current state is the resolution of the states at the forward extremities.

        If there are very many of them, because of a faulty or hostile server, resolving all for each new event would be
        too expensive. Then the room's state stands for all of them, as if an event had merged them; a new state event,
        which has passed authorization by that state, is resolved only with the event that it would replace.
        """
        return len(self.extremities) <= RESOLVED_TOGETHER_MAX


def _weigh_head(head: RoomHead) -> int:
    return 2_000 + STATE_ENTRY_BYTES * len(head.state) + MEMBER_BYTES * (len(head.joined) + len(head.joined_local))


def _weigh_snapshot(snapshot: StateSnapshot) -> int:
    return 1_000 + STATE_ENTRY_BYTES * len(snapshot.state)


class RoomHeads:
    """Caches the heads of the rooms that this server is or was in."""

    def __init__(self, database: Database, events: Events, is_local: Callable[[str], bool]) -> None:
        self._database = database
        self._events = events
        self._is_local = is_local
        self._heads: WeightedCache[str, RoomHead] = WeightedCache("rooms", HEADS_BYTES_MAX, _weigh_head)
        self._oldest_valid: WeightedCache[str, int] = WeightedCache(
            "changed rooms", OUTDATED_BYTES_MAX, lambda _: 0, entry_bytes=LONG_KEY_BYTES
        )
        """The generations that rooms are known to have reached."""
        self._acls: WeightedCache[tuple[int, str], ServerAcl] = WeightedCache(
            "server ACLs", ACLS_BYTES_MAX, lambda acl: acl.bytes
        )
        """By room and event."""

    async def get(self, room_id: str) -> RoomHead:
        """The head of a room; raises ``NotFound`` if this server was never in the room."""
        head = self._heads.get(room_id) or await self.find(room_id)
        if head is None:
            raise NotFound("This server does not know the room")
        return head

    async def find(self, room_id: str) -> RoomHead | None:
        """The head of a room, or None."""
        head = self._heads.get(room_id)
        if head is not None:
            return head
        return (await self.of_many([room_id])).get(room_id)

    def cached(self, room_id: str) -> RoomHead | None:
        """The head of a room if it is cached."""
        return self._heads.get(room_id)

    async def known(self, room_ids: Sequence[str]) -> list[str]:
        """Those among the rooms that this server is or was in, by one look-up for all of them."""
        missing = [room_id for room_id in room_ids if self._heads.peek(room_id) is None]
        rows = await self._database.read(room_state.room_rows, missing) if missing else {}
        inside = {room_id for room_id, row in rows.items() if row[3] is not None}
        return [room_id for room_id in room_ids if room_id in inside or self._heads.peek(room_id) is not None]

    async def of_many(self, room_ids: Sequence[str]) -> dict[str, RoomHead]:
        """The heads of several rooms; those that this server was never in are left out."""
        found: dict[str, RoomHead] = {}
        missing: list[str] = []
        for room_id in room_ids:
            head = self._heads.get(room_id)
            if head is not None:
                found[room_id] = head
            else:
                missing.append(room_id)
        if missing:
            for head in await self._database.read(self._load, missing):
                found[head.room_id] = self.keep(head)
        return found

    async def is_outdated(self, head: RoomHead) -> bool:
        """Whether the database has a newer head of the room; an outdated one is removed from the cache."""
        row = await self._database.read(room_state.room_row, head.room_id)
        if row is None or row[2] <= head.generation:
            return False
        self.forget(head.room_id, row[2])
        return True

    async def newest_where(self, room_id: str, is_met: Callable[[RoomHead], bool]) -> RoomHead | None:
        """The head of a room if it meets a condition, otherwise None. Before returning None, the newest head is
        checked."""
        head = await self.find(room_id)
        if head is not None and not is_met(head) and await self.is_outdated(head):
            head = await self.find(room_id)
        return head if head is not None and is_met(head) else None

    def keep(self, head: RoomHead) -> RoomHead:
        """Cache a head unless a newer one is cached; returns the newer one."""
        known = self._heads.peek(head.room_id)
        if known is not None and known.generation > head.generation:
            return known
        if head.generation >= (self._oldest_valid.peek(head.room_id) or 0):
            self._heads.put(head.room_id, head)
        return head

    def forget(self, room_id: str, generation: int | None = None) -> None:
        """Note that another process has changed the room, which has reached at least this generation."""
        known = self._heads.peek(room_id)
        if known is not None and (generation is None or known.generation < generation):
            self._heads.drop(room_id)
        if generation is not None:
            self._oldest_valid.put(room_id, max(generation, self._oldest_valid.peek(room_id) or 0))

    def _load(self, connection: Connection, room_ids: Sequence[str]) -> list[RoomHead]:
        rows = room_state.room_rows(connection, room_ids)
        inside = {room_id: row for room_id, row in rows.items() if row[3] is not None}
        nids = [row[0] for row in inside.values()]
        extremities = event_graph.forward_extremities_of(connection, nids)
        states = room_state.read_current_state_of_many(connection, nids)
        members = room_state.members_of_many(connection, nids, ("join", "invite"))
        heads: list[RoomHead] = []
        for room_id, (room_nid, version, generation, group) in inside.items():
            joined = [user_id for user_id, membership in members[room_nid] if membership == "join"]
            servers: dict[str, int] = {}
            for user_id in joined:
                server = server_of(user_id)
                servers[server] = servers.get(server, 0) + 1
            heads.append(
                RoomHead(
                    room_id=room_id,
                    room_nid=room_nid,
                    version=ROOM_VERSIONS[version],
                    generation=generation,
                    extremities=tuple(
                        Extremity(row.event_id, row.event_nid, row.depth, row.state_group, row.is_late)
                        for row in extremities[room_nid]
                    ),
                    snapshot=StateSnapshot(Map(states[room_nid]), group),
                    joined=Map(dict.fromkeys(joined, True)),
                    joined_local=Map({user_id: True for user_id in joined if self._is_local(user_id)}),
                    joined_servers=Map(servers),
                    invited=Map({u: True for u, membership in members[room_nid] if membership == "invite"}),
                )
            )
        return heads

    async def state_event(self, head: RoomHead, event_type: str, state_key: str = "") -> Event | None:
        """One event of the current state, as it is shown: redacted, if it has been."""
        event_id = head.state.get((event_type, state_key))
        if event_id is None:
            return None
        stored = await self._events.get(head.room_id, event_id)
        return stored.event if stored else None

    async def state_events(self, head: RoomHead, keys: Iterable[StateKey]) -> dict[StateKey, Event]:
        """Events of the current state, as far as they exist, in the form for clients: redacted if they have been."""
        return {key: stored.event for key, stored in (await self._stored_state(head, keys)).items()}

    async def original_state_event(self, head: RoomHead, event_type: str, state_key: str = "") -> Event | None:
        """An event of the current state as it was signed, for rules that ignore redactions."""
        key = (event_type, state_key)
        return (await self.original_state_events(head, [key])).get(key)

    async def original_state_events(self, head: RoomHead, keys: Iterable[StateKey]) -> dict[StateKey, Event]:
        """Events of the current state as they were signed: for authorization, not for clients."""
        return {key: stored.original for key, stored in (await self._stored_state(head, keys)).items()}

    async def allows_server(self, head: RoomHead, server_name: str) -> bool:
        """Whether the room's server ACL lets a server take part.

        NOTSPEC: a redacted ACL counts as it was signed. Redaction leaves nothing of its content, and an ACL without
        content shuts out every server. Other servers refuse their users such a redaction, as we do (see ``Sender``);
        one that comes nevertheless must not split the room, nor let in again the servers that the ACL keeps out.
        """
        event_id = head.state.get(SERVER_ACL)
        if event_id is None:
            return True
        key = (head.room_nid, event_id)
        acl = self._acls.get(key)
        if acl is None:
            event = await self.original_state_event(head, *SERVER_ACL)
            if event is None:
                return True
            acl = ServerAcl(event.content)
            self._acls.put(key, acl)
        return acl.allows(server_name)

    async def _stored_state(self, head: RoomHead, keys: Iterable[StateKey]) -> dict[StateKey, StoredEvent]:
        return await stored_events_of(self._events, head.room_id, head.state, keys)


async def stored_events_of(
    events: Events, room_id: str, state: Mapping[StateKey, str], keys: Iterable[StateKey]
) -> dict[StateKey, StoredEvent]:
    """The events that a state of a room has under some keys."""
    wanted = {key: event_id for key in keys if (event_id := state.get(key)) is not None}
    found = await events.by_id(room_id, wanted.values())
    return {key: found[event_id] for key, event_id in wanted.items() if event_id in found}


class StateReader:
    """Reads past states, and resolves states that differ."""

    def __init__(self, database: Database, events: Events) -> None:
        self._database = database
        self._events = events
        self._snapshots: WeightedCache[int, StateSnapshot] = WeightedCache(
            "states", SNAPSHOT_BYTES_MAX, _weigh_snapshot
        )
        self._reads: SingleFlight[int, StateSnapshot] = SingleFlight()
        """The states that are being read."""
        self._lookups: WeightedCache[tuple[int, StateKey], str] = WeightedCache(
            "state entries", LOOKUPS_BYTES_MAX, lambda _: LOOKUP_BYTES
        )
        self._resolved: WeightedCache[tuple[str, frozenset[int]], StateSnapshot] = WeightedCache(
            "resolved states", RESOLVED_BYTES_MAX, _weigh_snapshot
        )

    async def snapshot(self, state_group: int) -> StateSnapshot:
        """A complete state."""
        known = self._snapshots.get(state_group)
        return known if known is not None else await self._reads.run(state_group, lambda: self._read(state_group))

    async def _read(self, state_group: int) -> StateSnapshot:
        snapshot = await self._database.read(_read_snapshot, state_group, dict(self._snapshots.items()))
        self._snapshots.put(state_group, snapshot)
        return snapshot

    def keep(self, snapshot: StateSnapshot) -> None:
        """Cache a state that was just stored."""
        if snapshot.group is not None:
            self._snapshots.put(snapshot.group, snapshot)

    async def lookup(self, state_group: int, keys: Iterable[StateKey]) -> dict[StateKey, str]:
        """Some entries of a past state: event IDs by key; keys that the state does not have are left out."""
        wanted = list(keys)
        whole = self._snapshots.get(state_group)
        if whole is not None:
            return {key: event_id for key in wanted if (event_id := whole.state.get(key)) is not None}
        found: dict[StateKey, str] = {}
        missing: list[StateKey] = []
        for key in wanted:
            known = self._lookups.get((state_group, key))
            if known is None:
                missing.append(key)
            elif known:
                found[key] = known
        if missing:
            read = await self._database.read(room_state.read_group_keys, state_group, missing)
            found.update(read)
            for key in missing:
                self._lookups.put((state_group, key), read.get(key, ""))
        return found

    async def before(self, stored: StoredEvent) -> StateSnapshot:
        """The state before an event that is in the graph."""
        assert stored.state_group is not None
        after = await self.snapshot(stored.state_group)
        if not stored.event.is_state or stored.verdict & Verdict.REJECTED:
            return after
        replaced: str | None = None
        if stored.replaces_nid is not None:
            replaced = (await self._events.by_nid([stored.replaces_nid]))[stored.replaces_nid].event_id
        return after.changed({stored.event.key: replaced})

    async def after_extremity(self, extremity: Extremity) -> StateSnapshot:
        """The state after a forward extremity."""
        if isinstance(extremity.after, StateSnapshot):
            return extremity.after
        return await self.snapshot(extremity.after)

    async def resolve(
        self,
        room: RoomHead,
        snapshots: Sequence[StateSnapshot],
        unstored: Mapping[str, Event] | None = None,
    ) -> StateSnapshot:
        """The resolution of several states of a room; ``room`` is any of its heads.

        ``unstored`` holds events of the states that are not committed yet.
        """
        distinct = _distinct(snapshots)
        if len(distinct) == 1:
            return distinct[0]
        groups = frozenset(snapshot.group for snapshot in distinct if snapshot.group is not None)
        is_stored = len(groups) == len(distinct)
        known = self._resolved.get((room.version.identifier, groups)) if is_stored else None
        if known is None:
            known = await self._resolve(room, distinct, unstored or {})
            if is_stored:
                self._resolved.put((room.version.identifier, groups), known)
        return known

    async def _resolve(
        self, room: RoomHead, distinct: Sequence[StateSnapshot], unstored: Mapping[str, Event]
    ) -> StateSnapshot:
        states = [snapshot.state for snapshot in distinct]
        _, conflicted = split_states(states)
        conflicted_ids = {event_id for ids in conflicted.values() for event_id in ids}
        rejected: set[str] = set()
        events = await self._gather(room, conflicted_ids, unstored, rejected)
        difference = subgraph = set[str]()
        if room.version.state_resolution is not StateResolution.V1:
            likely = cited_keys(events.values())
            difference, subgraph = await full_conflict(
                self._database, room.room_nid, room.version, states, conflicted_ids, likely, unstored
            )
        events.update(await self._gather(room, (difference | subgraph) - events.keys(), unstored, rejected))
        for round_ in range(RESOLUTION_ROUNDS_MAX):
            try:
                resolved = resolve(
                    room.version,
                    states,
                    events=events,
                    auth_difference=difference,
                    conflicted_subgraph=subgraph,
                    rejected=rejected,
                )
            except MissingEvents as missing:
                wanted = set(missing.event_ids)
                if round_ > 0:
                    # Resolution follows the chain of power levels step by step: load all of it.
                    wanted |= await self._database.read(_auth_chain_of, room.room_nid, wanted - unstored.keys())
                more = await self._gather(room, wanted, unstored, rejected)
                if not missing.event_ids <= more.keys():
                    raise
                events.update(more)
                continue
            changes: dict[StateKey, str | None] = {key: resolved.get(key) for key in conflicted}
            return distinct[0].changed(changes)
        raise RuntimeError("state resolution does not come to an end")

    async def _gather(
        self, room: RoomHead, event_ids: Iterable[str], unstored: Mapping[str, Event], rejected: set[str]
    ) -> dict[str, Event]:
        wanted = set(event_ids)
        found = {event_id: unstored[event_id] for event_id in wanted if event_id in unstored}
        for event_id, stored in (await self._events.by_id(room.room_id, wanted - found.keys())).items():
            found[event_id] = stored.original
            if stored.verdict & Verdict.REJECTED:
                rejected.add(event_id)
        return found


def _distinct(snapshots: Sequence[StateSnapshot]) -> list[StateSnapshot]:
    distinct: list[StateSnapshot] = []
    for snapshot in snapshots:
        same = any(
            other is snapshot
            or (other.group is not None and other.group == snapshot.group)
            or other.state is snapshot.state
            or other.state == snapshot.state
            for other in distinct
        )
        if not same:
            distinct.append(snapshot)
    return distinct


def _read_snapshot(connection: Connection, state_group: int, known: Mapping[int, StateSnapshot]) -> StateSnapshot:
    """A state, based on a cached one if possible, so that they share their common part."""
    group, changes = room_state.read_group_since(connection, state_group, known.keys())
    state = known[group].state if group is not None else EMPTY_STATE
    # The map is made here, on a thread, since that takes a while for a large room.
    with state.mutate() as mutation:
        for key, event_id in changes.items():
            if event_id is not None:
                mutation[key] = event_id
            else:
                mutation.pop(key, None)
        state = mutation.finish()
    return StateSnapshot(state, state_group)


def _auth_chain_of(connection: Connection, room_nid: int, event_ids: set[str]) -> set[str]:
    nids = event_graph.nids_of(connection, room_nid, event_ids).values()
    return set(room_state.event_ids_of(connection, auth_chains.auth_chain_nids(connection, nids)).values())
