"""Writing to the event graph: all waiting appends, of all rooms, in a few statements.

``GraphWriter.append`` is a batch handler (``Database.write_batched``): it gets the appends of several rooms at once and
runs one statement per table for all of them. Everything is decided before; it only assigns numbers, replaces event IDs
by them, and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, update

from homeserver.caches import WeightedCache
from homeserver.protocol.events import Event, StateKey
from homeserver.storage import aliases, invitations, room_state
from homeserver.storage.appends import (
    AliasTaken,
    AlreadySent,
    Appended,
    CurrentChange,
    EventWrite,
    GroupRef,
    NewRoom,
    RoomAppend,
    StaleHead,
    TransactionKey,
)
from homeserver.storage.event_graph import KnownEvents, Verdict, known_events
from homeserver.storage.graph_rows import GraphRows, write_rows
from homeserver.storage.places import place_of
from homeserver.storage.prepared import PreparedSelect, prepared, prepared_insert
from homeserver.storage.room_upgrades import hand_over
from homeserver.storage.tables import (
    client_transactions,
    counters,
    rooms,
)

STATE_KEYS_BYTES_MAX = 16 * 2**20
"""How much memory the cached numeric IDs of state keys may use."""
SORT_NAME_CHARACTERS_MAX = 250
"""The length of the part of a display name that lists are sorted by. (PostgreSQL limits an index entry to 2,704
bytes.)
"""
_OUTLIER = int(Verdict.OUTLIER)
_REJECTED = int(Verdict.REJECTED)


_ADD_ROOM = prepared_insert(rooms, or_ignore=True)
_ROOM = PreparedSelect(select(rooms.c.room_nid, rooms.c.generation).where(rooms.c.room_id == bindparam("room_id")))
_CLAIM = prepared_insert(client_transactions, or_ignore=True)
_RELEASE = prepared(delete(client_transactions).where(client_transactions.c.event_nid == bindparam("b_event_nid")))
_generations = select(rooms.c.room_nid, rooms.c.generation).where(
    rooms.c.room_nid.in_(bindparam("wanted", expanding=True))
)
_GENERATIONS = PreparedSelect(_generations)
_LOCKED_GENERATIONS = PreparedSelect(_generations.order_by(rooms.c.room_nid).with_for_update())
_TAKE = (
    update(counters)
    .values(
        event=counters.c.event + bindparam("events_taken"),
        stream=counters.c.stream + bindparam("positions_taken"),
        backfill=counters.c.backfill - bindparam("backfilled_taken"),
        state_group=counters.c.state_group + bindparam("groups_taken"),
        auth_chain=counters.c.auth_chain + bindparam("chains_taken"),
    )
    .returning(counters.c.event, counters.c.stream, counters.c.backfill, counters.c.state_group, counters.c.auth_chain)
)
_Numbered = list[tuple[int, RoomAppend]]
"""Appends with their index among those that share the transaction."""


@dataclass(slots=True)
class _Numbers:
    """Numbers reserved for a transaction, assigned one by one."""

    event: int
    stream: int
    backfill: int
    group: int
    chain: int

    def next_chain(self) -> int:
        self.chain += 1
        return self.chain


class _Places:
    """The events of one room that a transaction refers to: those that were ``known`` before, and those that it adds."""

    def __init__(self, known: KnownEvents) -> None:
        self.known = known
        self.nids = {event_id: nid for event_id, (nid, _) in known.items()}
        self.in_graph = {event_id for event_id, (_, verdict) in known.items() if not _is_outlier(verdict)}


def _is_outlier(verdict: int) -> bool:
    # Compare plain integers: an operation on flags takes twenty times as long, and this runs for every event.
    return bool(int(verdict) & _OUTLIER)


class GraphWriter:
    """Writes appends. Caches the numeric IDs of state keys, which never change once they are committed."""

    def __init__(self, is_local: Callable[[str], bool]) -> None:
        self._is_local = is_local
        self._state_keys: WeightedCache[StateKey, tuple[StateKey, int]] = WeightedCache(
            "state keys", STATE_KEYS_BYTES_MAX, lambda entry: 200 + 2 * (len(entry[0][0]) + len(entry[0][1]))
        )
        """Each with its key. The thread that writes only peeks; the event loop puts what was committed."""

    def append(self, connection: Connection, appends: Sequence[RoomAppend]) -> list[Appended | BaseException]:
        """Write appends of different rooms. If a room has changed, its append gets ``StaleHead``, and the others are
        written.
        """
        outcomes: list[Appended | BaseException] = [StaleHead() for _ in appends]
        todo = self._fresh(connection, _add_rooms(connection, appends, outcomes))
        known = self._known_events(connection, [append for _, append in todo])
        todo = [(i, a) for i, a in todo if not _has_placed(a, known[a.room_nid])]
        if todo and not self._write(connection, todo, known, outcomes):
            # Look for the repeated request only now, so that other requests do not pay for the query.
            todo = _without_repeated(connection, todo, outcomes)
            if todo and not self._write(connection, todo, known, outcomes):
                raise RuntimeError("transaction IDs are taken, but no request has used them")
        return outcomes

    def _write(
        self,
        connection: Connection,
        todo: _Numbered,
        known: Mapping[int, KnownEvents],
        outcomes: list[Appended | BaseException],
    ) -> bool:
        """Write all appends; if a transaction ID was used before, write nothing and return False."""
        appends = [append for _, append in todo]
        state_keys = self._intern(connection, appends)
        numbers = _take_numbers(connection, appends, known)
        rows = GraphRows()
        for index, append in todo:
            outcomes[index] = self._collect(append, _Places(known[append.room_nid]), state_keys, numbers, rows)
        if not _claim_transactions(connection, rows.txns):
            return False
        write_rows(connection, rows, iter(numbers.next_chain, None))
        return True

    def append_together(self, connection: Connection, appends: Sequence[RoomAppend]) -> list[Appended]:
        """Write appends of different rooms, all or none. Raises ``StaleHead`` if one of the rooms has changed."""
        done: list[Appended] = []
        for outcome in self.append(connection, appends):
            if isinstance(outcome, BaseException):
                raise outcome  # this rolls the transaction back
            done.append(outcome)
        return done

    def remember(self, state_keys: Mapping[StateKey, int]) -> None:
        """Cache numeric IDs of state keys after they were committed."""
        for key, nid in state_keys.items():
            if self._state_keys.get(key) is None:
                self._state_keys.put(key, (key, nid))

    # -- gathering -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _fresh(connection: Connection, appends: _Numbered) -> _Numbered:
        """The appends that were composed on the current generation of their room."""
        statement = _GENERATIONS if connection.dialect.name == "sqlite" else _LOCKED_GENERATIONS
        wanted = [append.room_nid for _, append in appends]
        current = {row[0]: row[1] for row in statement.rows(connection, wanted=wanted)}
        fresh: _Numbered = []
        for index, append in appends:
            if current.get(append.room_nid) == append.generation:
                fresh.append((index, append))
                current[append.room_nid] = -1  # only one append of a room in a transaction
        return fresh

    @staticmethod
    def _known_events(connection: Connection, appends: Sequence[RoomAppend]) -> dict[int, KnownEvents]:
        """For each room, numeric ID and verdict of every event that is referred to and was stored in that room
        before.
        """
        known: dict[int, KnownEvents] = {}
        missing: dict[int, set[str]] = {}
        for append in appends:
            at_hand = {event_id: (nid, Verdict.ACCEPTED) for event_id, nid in append.known.items()}
            known[append.room_nid] = at_hand
            wanted: set[str] = set()
            composed: set[str] = set()
            for write in append.events:
                event = write.event
                if write.txn is None:
                    wanted.add(event.event_id)
                else:
                    # composed a moment ago for a client of ours: it cannot have been stored before
                    composed.add(event.event_id)
                if not _is_outlier(write.verdict):
                    wanted.update(event.prev_events)
                if event.is_state:
                    wanted.update(event.auth_events)
                if write.replaces:
                    wanted.add(write.replaces)
            wanted.update(event_id for group in append.groups for event_id in group.delta.values() if event_id)
            wanted.update(change.event.event_id for change in append.changes if change.event)
            if append.extremities:
                wanted.update(append.extremities[0] | append.extremities[1])
            for redacted, redaction in append.applied_redactions:
                wanted.update((redacted, redaction))
            if wanted := wanted - at_hand.keys() - composed:
                missing[append.room_nid] = wanted
        if missing:
            for room_nid, found in known_events(connection, missing).items():
                known[room_nid].update(found)
        return known

    def _intern(self, connection: Connection, appends: Sequence[RoomAppend]) -> dict[StateKey, int]:
        wanted = {write.event.key for append in appends for write in append.events if write.event.is_state}
        for append in appends:
            wanted.update(key for group in append.groups for key in group.delta)
            wanted.update(change.key for change in append.changes)
        found = {key: known[1] for key in wanted if (known := self._state_keys.peek(key)) is not None}
        missing = wanted - found.keys()
        if missing:
            found.update(room_state.intern_state_keys(connection, missing))
        return found

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _collect(
        self,
        append: RoomAppend,
        places: _Places,
        state_keys: Mapping[StateKey, int],
        numbers: _Numbers,
        rows: GraphRows,
    ) -> Appended:
        known, nids, in_graph = places.known, places.nids, places.in_graph
        new: dict[str, int] = {}
        for write in append.events:
            event_id = write.event.event_id
            if event_id not in nids:
                numbers.event += 1
                nids[event_id] = numbers.event
            new[event_id] = nids[event_id]
            if not _is_outlier(write.verdict):
                in_graph.add(event_id)
        groups = range(numbers.group + 1, numbers.group + 1 + len(append.groups))
        numbers.group += len(append.groups)
        self._collect_groups(append, groups, nids, state_keys, rows)
        positions: dict[str, int] = {}
        history: dict[str, int] = {}
        after_gaps: set[str] = set()
        for write in append.events:
            position = _position(write, numbers)
            place = None
            if position is not None:
                positions[write.event.event_id] = position
                place = history[write.event.event_id] = _place(write, position)
            _collect_event(append.room_nid, write, position, place, groups, nids, known, state_keys, rows)
            if position is not None and place is not None:
                if _collect_edges(append.room_nid, write, place, places, rows) and write.verdict == Verdict.ACCEPTED:
                    after_gaps.add(write.event.event_id)
                    if not write.backfilled:
                        rows.lanes.append({"room_nid": append.room_nid, "position": position, "lowest": place})
                if write.awaited:
                    rows.awaited.append(nids[write.event.event_id])
        for redacted, redaction in append.applied_redactions:
            rows.redactions.append(
                {
                    "redacted_event_id": redacted,
                    "room_nid": append.room_nid,
                    "redaction_nid": nids[redaction],
                    "applied": True,
                }
            )
        self._collect_current(append, positions, nids, state_keys, rows)
        _collect_extremities(append, nids, rows)
        if append.current is not None:
            group = _group_number(append.current, groups)
            rows.states.append(
                {
                    "b_room_nid": append.room_nid,
                    "b_generation": append.generation + 1,
                    "b_state_group": group,
                }
            )
        else:
            rows.generations.append({"b_room_nid": append.room_nid, "b_generation": append.generation + 1})
        return Appended(append.room_nid, new, positions, history, groups, state_keys, frozenset(after_gaps))

    @staticmethod
    def _collect_groups(
        append: RoomAppend,
        numbers: range,
        nids: Mapping[str, int],
        state_keys: Mapping[StateKey, int],
        rows: GraphRows,
    ) -> None:
        for number, group in zip(numbers, append.groups, strict=True):
            rows.groups.append(
                room_state.NewGroup(
                    number,
                    append.room_nid,
                    _group_number(group.predecessor, numbers) if group.predecessor else None,
                    {state_keys[key]: nids[e] if e else None for key, e in group.delta.items()},
                )
            )

    def _collect_current(
        self,
        append: RoomAppend,
        positions: Mapping[str, int],
        nids: Mapping[str, int],
        state_keys: Mapping[StateKey, int],
        rows: GraphRows,
    ) -> None:
        room_nid = append.room_nid
        last: dict[StateKey, CurrentChange] = {}
        for change in append.changes:
            last[change.key] = change
            if change.key[0] == "m.room.member":
                rows.invitations.append(_invitation_step(room_nid, change, nids))
            rows.changes.append(
                {
                    "room_nid": room_nid,
                    "position": positions[change.at],
                    "state_key_nid": state_keys[change.key],
                    "event_nid": nids[change.event.event_id] if change.event else None,
                }
            )
        for key, change in last.items():
            if change.event is None:
                rows.removed.append((room_nid, state_keys[key]))
                if key[0] == "m.room.member":
                    rows.removed_members.append((room_nid, key[1]))
                    if self._is_local(key[1]):
                        rows.removed_standings.append(
                            {"b_user_id": key[1], "b_room_nid": room_nid, "b_position": positions[change.at]}
                        )
                continue
            nid = nids[change.event.event_id]
            rows.current.append({"room_nid": room_nid, "state_key_nid": state_keys[key], "event_nid": nid})
            if key[0] == "m.room.member":
                rows.members.append(member_row(room_nid, change.event, nid))
                if self._is_local(key[1]):
                    rows.user_rooms.append(user_room_row(room_nid, change.event, nid, positions[change.at]))


def _invitation_step(room_nid: int, change: CurrentChange, nids: Mapping[str, int]) -> invitations.Step:
    event = change.event
    if event is None:
        return invitations.Step(room_nid, change.key[1], None)
    cites = tuple(nids[name] for name in event.auth_events if name in nids)
    return invitations.Step(room_nid, change.key[1], event, nids[event.event_id], cites)


def _add_rooms(
    connection: Connection, appends: Sequence[RoomAppend], outcomes: list[Appended | BaseException]
) -> _Numbered:
    """Add the rooms that are new, with their aliases. A room whose alias is taken is not added."""
    added: _Numbered = []
    for index, append in enumerate(appends):
        new = append.new_room
        if new is not None:
            if new.alias is not None and aliases.alias_row(connection, new.alias.alias) is not None:
                outcomes[index] = AliasTaken(new.alias.alias)
                continue
            append.room_nid, generation = add_room(connection, new)
            if generation != append.generation:
                continue  # another process has created the same room: in version 12, one with the same ID
            if new.alias is not None:
                aliases.add_alias(connection, new.alias.alias, new.room_id, new.alias.creator)
            if new.replaces is not None:
                hand_over(connection, new.replaces, new.room_id)
        added.append((index, append))
    return added


def add_room(connection: Connection, room: NewRoom) -> tuple[int, int]:
    """Add a room unless it exists; returns its numeric ID and its generation."""
    _ADD_ROOM.run(
        connection,
        [
            {
                "room_id": room.room_id,
                "version": room.version,
                "created_ts": room.created_ts,
                "generation": 0,
                "published": room.published,
            }
        ],
    )
    row = _ROOM.rows(connection, room_id=room.room_id)[0]
    return row[0], row[1]


def _has_placed(append: RoomAppend, known: KnownEvents) -> bool:
    """Whether an event of the append is in the graph already, because another request has written it first."""
    for write in append.events:
        place = known.get(write.event.event_id)
        if place and not _is_outlier(place[1]) and not _is_outlier(write.verdict):
            return True
    return False


def _claim_transactions(connection: Connection, rows: list[dict[str, Any]]) -> bool:
    """Reserve transaction IDs: all, or none if one of them was used before."""
    if not rows or _CLAIM.run(connection, rows) == len(rows):
        return True
    _RELEASE.run(connection, [{"b_event_nid": row["event_nid"]} for row in rows])
    return False


def _without_repeated(
    connection: Connection, appends: _Numbered, outcomes: list[Appended | BaseException]
) -> _Numbered:
    """The appends whose transaction IDs were not used before."""
    new: _Numbered = []
    for index, append in appends:
        sent: dict[str, int] = {}
        for write in append.events:
            before = event_of_transaction(connection, write.txn) if write.txn is not None else None
            if before is not None:
                sent[write.event.event_id] = before
        if sent:
            outcomes[index] = AlreadySent(sent)
        else:
            new.append((index, append))
    return new


def event_of_transaction(connection: Connection, txn: TransactionKey) -> int | None:
    """The numeric ID of the event that was sent under a transaction ID."""
    table = client_transactions.c
    statement = select(table.event_nid).where(
        table.user_id == txn.user_id,
        table.device_id == txn.device_id,
        table.scope == txn.scope,
        table.txn_id == txn.txn_id,
    )
    return connection.execute(statement).scalar_one_or_none()


def _take_numbers(connection: Connection, appends: Sequence[RoomAppend], known: Mapping[int, KnownEvents]) -> _Numbers:
    writes = [write for append in appends for write in append.events]
    placed = [write for write in writes if not _is_outlier(write.verdict)]
    taken = {
        "events_taken": sum(w.event.event_id not in known[a.room_nid] for a in appends for w in a.events),
        "positions_taken": sum(not write.backfilled for write in placed),
        "backfilled_taken": sum(write.backfilled for write in placed),
        "groups_taken": sum(len(append.groups) for append in appends),
        "chains_taken": sum(write.event.is_state for write in writes),
    }
    event, stream, backfill, group, chain = connection.execute(_TAKE, taken).one()
    return _Numbers(
        event - taken["events_taken"],
        stream - taken["positions_taken"],
        # Backfilled events come oldest first, and the oldest gets the lowest position.
        backfill - 1,
        group - taken["groups_taken"],
        chain - taken["chains_taken"],
    )


def _position(write: EventWrite, numbers: _Numbers) -> int | None:
    if _is_outlier(write.verdict):
        return None
    if write.backfilled:
        numbers.backfill += 1
        return numbers.backfill
    numbers.stream += 1
    return numbers.stream


def _place(write: EventWrite, position: int) -> int:
    if write.place is not None:
        return write.place
    # Negative positions are places themselves, before all events that arrived live.
    return place_of(position) if position > 0 else position


def _group_number(reference: GroupRef, new: range) -> int:
    if reference.index is not None:
        return new[reference.index]
    assert reference.state_group is not None
    return reference.state_group


def _collect_event(
    room_nid: int,
    write: EventWrite,
    position: int | None,
    place: int | None,
    groups: range,
    nids: Mapping[str, int],
    known: KnownEvents,
    state_keys: Mapping[StateKey, int],
    rows: GraphRows,
) -> None:
    event = write.event
    nid = nids[event.event_id]
    group = _group_number(write.state, groups) if write.state else None
    replaces = nids[write.replaces] if write.replaces else None
    if event.event_id in known:
        if position is None:
            return  # an outlier that is stored already
        rows.placed.append(
            {
                "b_event_nid": nid,
                "b_stream_position": position,
                "b_place": place,
                "b_state_group": group,
                "b_replaces_nid": replaces,
                "b_verdict": int(write.verdict),
                "b_json": event.json,
            }
        )
    else:
        rows.events.append(
            {
                "event_nid": nid,
                "event_id": event.event_id,
                "room_nid": room_nid,
                "type": event.type,
                "state_key_nid": state_keys[event.key] if event.is_state else None,
                "depth": event.depth,
                "origin_server_ts": event.origin_server_ts,
                "stream_position": position,
                "place": place,
                "state_group": group,
                "replaces_nid": replaces,
                "verdict": int(write.verdict),
                "json": event.json,
            }
        )
    if event.is_state and not int(write.verdict) & _REJECTED:
        before = known.get(event.event_id)
        if before is None or int(before[1]) & _REJECTED:
            rows.auth.append((nid, [nids[auth] for auth in event.auth_events if auth in nids]))
    if write.reason:
        rows.reasons.append({"event_nid": nid, "reason": write.reason})
    if event.redacts is not None and write.verdict == Verdict.ACCEPTED:
        rows.redactions.append(
            {
                "redacted_event_id": event.redacts,
                "room_nid": room_nid,
                "redaction_nid": nid,
                "applied": write.redaction_applied,
            }
        )
    if (txn := write.txn) is not None:
        rows.txns.append(
            {
                "user_id": txn.user_id,
                "device_id": txn.device_id,
                "scope": txn.scope,
                "txn_id": txn.txn_id,
                "event_nid": nid,
                "ts": txn.ts,
            }
        )


def _collect_edges(room_nid: int, write: EventWrite, place: int, places: _Places, rows: GraphRows) -> bool:
    """Collect the edges of an event to its prev_events. Returns whether one of those is not in the graph."""
    event, nids = write.event, places.nids
    nid = nids[event.event_id]
    # A live event that is hidden from clients leaves no gap in what they see. A backfilled one may lead to visible
    # events.
    is_gap = write.verdict == Verdict.ACCEPTED or write.backfilled
    has_gap = False
    for prev in dict.fromkeys(event.prev_events):
        if prev in places.in_graph:
            rows.edges.append({"event_nid": nid, "prev_nid": nids[prev]})
            before = places.known.get(prev)
            if is_gap and before is not None and int(before[1]):
                rows.seen_through.append(nids[prev])
        else:
            has_gap = True
            rows.missing.append(
                {
                    "room_nid": room_nid,
                    "missing_event_id": prev,
                    "event_nid": nid,
                    "place": place if is_gap else None,
                }
            )
    return has_gap


def _collect_extremities(append: RoomAppend, nids: Mapping[str, int], rows: GraphRows) -> None:
    if append.extremities is None:
        return
    before, after = append.extremities
    gone, come = before - after, after - before
    if len(gone) == len(come) == 1:
        rows.moved.append(
            {"b_room_nid": append.room_nid, "b_old": nids[next(iter(gone))], "b_new": nids[next(iter(come))]}
        )
        return
    rows.dropped_extremities.extend({"b_room_nid": append.room_nid, "b_old": nids[old]} for old in gone)
    rows.new_extremities.extend({"room_nid": append.room_nid, "event_nid": nids[new]} for new in come)


def member_row(room_nid: int, event: Event, nid: int) -> dict[str, Any]:
    """The row of ``room_members`` for a membership event."""
    content = event.content
    name, avatar = content.get("displayname"), content.get("avatar_url")
    return {
        "room_nid": room_nid,
        "user_id": event.state_key,
        "membership": event.membership or "leave",
        "event_nid": nid,
        "event_ts": event.origin_server_ts,
        "display_name": name if isinstance(name, str) else None,
        "sort_name": name[:SORT_NAME_CHARACTERS_MAX] if isinstance(name, str) else "",
        "avatar_url": avatar if isinstance(avatar, str) else None,
    }


def user_room_row(room_nid: int, event: Event, nid: int, position: int) -> dict[str, Any]:
    """The row of ``user_rooms`` for a membership event of a room that this server is in."""
    return {
        "user_id": event.state_key,
        "room_nid": room_nid,
        "membership": event.membership or "leave",
        "event_nid": nid,
        "sender": event.sender,
        "position": position,
        "forgotten": False,
        "stripped_state": None,
    }
