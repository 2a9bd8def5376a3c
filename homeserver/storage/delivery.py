"""What is still to be sent to other servers, whether they can be reached, and the transactions they have sent.

Rows of ``outbound_pdus`` are only for servers that could not be reached at once; see ``federation.delivery``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from homeserver.storage.database import Database, in_slices, upsert
from homeserver.storage.database import insert as insert_or
from homeserver.storage.streams import current_position
from homeserver.storage.tables import (
    current_state_changes,
    destinations,
    events,
    outbound_pdus,
    outbound_requests,
    reader_positions,
    received_transactions,
    state_keys,
)

READER = "federation"
"""The name of the delivery among the readers of the event stream."""
_LEASE_KEY = 0x6D6174726978
"""The PostgreSQL advisory lock of the process that delivers."""


@dataclass(frozen=True, slots=True)
class OutboundPdu:
    """An event that is still to be sent to a server."""

    stream_position: int
    room_nid: int
    event_nid: int


@dataclass(frozen=True, slots=True)
class Reachability:
    """Whether a server can be reached, and when to try it again."""

    server_name: str
    failing_since_ts: int | None = None
    retry_at_ts: int | None = None
    retry_interval_ms: int = 0
    last_success_ts: int | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the delivery stores in one transaction."""

    position: int
    """All events up to here are delivered or in ``outbound_pdus``."""
    owed: Sequence[tuple[str, OutboundPdu]] = ()
    """``(server_name, event)`` for servers that have not accepted it yet."""
    reachability: Sequence[Reachability] = ()


# -- the event stream --------------------------------------------------------------------------------------------------


def start_position(connection: Connection) -> int:
    """The position up to which events are delivered; if the delivery never ran, the current position, which is then
    stored.
    """
    stored = connection.execute(
        select(reader_positions.c.position).where(reader_positions.c.reader == READER)
    ).scalar_one_or_none()
    if stored is not None:
        return int(stored)
    present = current_position(connection)
    statement = insert_or(connection, reader_positions).on_conflict_do_nothing(index_elements=["reader"])
    connection.execute(statement, [{"reader": READER, "position": present}])
    return present


def events_after(connection: Connection, position: int, limit: int) -> tuple[list[OutboundPdu], int]:
    """Accepted events after a position, oldest first, and the position up to which the list is complete."""
    upto = current_position(connection)
    columns = (events.c.stream_position, events.c.room_nid, events.c.event_nid)
    statement = (
        select(*columns)
        .where(events.c.stream_position > position, events.c.stream_position <= upto, events.c.verdict == 0)
        .order_by(events.c.stream_position)
        .limit(limit)
    )
    found = [OutboundPdu(*row) for row in connection.execute(statement)]
    return found, (found[-1].stream_position if len(found) == limit else upto)


def members_changed_since(connection: Connection, room_nid: int, position: int, except_of: str) -> set[str]:
    """The users of servers other than ``except_of`` whose member events in a room changed at a position or later."""
    table = current_state_changes.c
    statement = (
        select(state_keys.c.state_key)
        .join_from(current_state_changes, state_keys, state_keys.c.state_key_nid == table.state_key_nid)
        .where(
            table.room_nid == room_nid,
            table.position >= position,
            state_keys.c.type == "m.room.member",
            ~state_keys.c.state_key.endswith(f":{except_of}", autoescape=True),
        )
        .distinct()
    )
    return set(connection.execute(statement).scalars())


# -- what is owed ------------------------------------------------------------------------------------------------------


def write_checkpoint(connection: Connection, checkpoint: Checkpoint) -> None:
    """Store the position of the delivery, and what it still owes to which server."""
    if checkpoint.owed:
        statement = insert_or(connection, outbound_pdus).on_conflict_do_nothing(
            index_elements=["server_name", "stream_position"]
        )
        connection.execute(statement, [_owed_row(server_name, pdu) for server_name, pdu in checkpoint.owed])
    for reachability in checkpoint.reachability:
        store_reachability(connection, reachability)
    upsert(connection, reader_positions, [{"reader": READER, "position": checkpoint.position}], ["reader"])


def _owed_row(server_name: str, pdu: OutboundPdu) -> dict[str, Any]:
    return {
        "server_name": server_name,
        "stream_position": pdu.stream_position,
        "room_nid": pdu.room_nid,
        "event_nid": pdu.event_nid,
    }


def owed_counts(connection: Connection) -> dict[str, int]:
    """How many events each server is owed, for those that are owed any."""
    table = outbound_pdus.c
    rows = connection.execute(select(table.server_name, func.count()).group_by(table.server_name))
    return {row[0]: row[1] for row in rows}


def owed_pdus(connection: Connection, server_name: str, limit: int) -> list[OutboundPdu]:
    """The oldest events that a server is owed."""
    table = outbound_pdus.c
    statement = (
        select(table.stream_position, table.room_nid, table.event_nid)
        .where(table.server_name == server_name)
        .order_by(table.stream_position)
        .limit(limit)
    )
    return [OutboundPdu(*row) for row in connection.execute(statement)]


def remove_owed(connection: Connection, server_name: str, positions: Iterable[int]) -> int:
    """Delete events that a server has got. Returns how many it is still owed."""
    table = outbound_pdus.c
    for part in in_slices(list(positions)):
        connection.execute(
            delete(outbound_pdus).where(table.server_name == server_name, table.stream_position.in_(part))
        )
    statement = select(func.count()).select_from(outbound_pdus).where(table.server_name == server_name)
    return int(connection.execute(statement).scalar_one())


def thin_out(connection: Connection, server_name: str, keep_max: int) -> int:
    """Keep, of the events owed to a server, the latest of each room and those about its own users.

    From the latest event it finds the others, if it is in the room; after a kick or ban of its own user it may not be.
    Beyond ``keep_max`` events the oldest are deleted. Returns how many remain.
    """
    table = outbound_pdus.c
    statement = (
        select(table.stream_position, table.room_nid, events.c.type, state_keys.c.state_key)
        .select_from(
            outbound_pdus.join(events, events.c.event_nid == table.event_nid).outerjoin(
                state_keys, state_keys.c.state_key_nid == events.c.state_key_nid
            )
        )
        .where(table.server_name == server_name)
        .order_by(table.stream_position.desc())
    )
    seen: set[int] = set()
    kept = 0
    dropped: list[int] = []
    for position, room_nid, event_type, state_key in connection.execute(statement):
        is_theirs = event_type == "m.room.member" and (state_key or "").partition(":")[2] == server_name
        if kept < keep_max and (room_nid not in seen or is_theirs):
            kept += 1
        else:
            dropped.append(position)
        seen.add(room_nid)
    remove_owed(connection, server_name, dropped)
    return kept


# -- reachability ------------------------------------------------------------------------------------------------------


def unreachable_servers(connection: Connection) -> list[Reachability]:
    """The servers that are not to be tried for a while."""
    table = destinations.c
    statement = select(
        table.server_name,
        table.failing_since_ts,
        table.retry_at_ts,
        table.retry_interval_ms,
        table.last_success_ts,
    ).where(table.failing_since_ts.is_not(None))
    return [Reachability(*row) for row in connection.execute(statement)]


def store_reachability(connection: Connection, reachability: Reachability) -> None:
    """Store whether a server can be reached."""
    row: dict[str, Any] = {
        "server_name": reachability.server_name,
        "failing_since_ts": reachability.failing_since_ts,
        "retry_at_ts": reachability.retry_at_ts,
        "retry_interval_ms": reachability.retry_interval_ms,
    }
    if reachability.last_success_ts is not None:
        row["last_success_ts"] = reachability.last_success_ts
    upsert(connection, destinations, [row], ["server_name"])


# -- who delivers ------------------------------------------------------------------------------------------------------


class DeliveryLease:
    """The right to deliver: one of the processes that share a database holds it, for as long as it is connected.

    On PostgreSQL it is an advisory lock, which the database releases when the connection breaks. A SQLite database has
    one process only.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None

    def hold(self) -> bool:
        """Take the lease, or check that this process still holds it. Blocks for one query."""
        if self._database.is_sqlite:
            return True
        try:
            if self._connection is not None:
                self._connection.execute(text("SELECT 1"))
                return True
            connection = self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LEASE_KEY}).scalar_one():
                self._connection = connection
                return True
            connection.close()
        except Exception:
            self.release()
            raise
        return False

    def release(self) -> None:
        """Let another process deliver."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with contextlib.suppress(DBAPIError):  # a broken connection holds no lock any more
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LEASE_KEY})
        connection.invalidate()  # closing the connection releases the lock, whatever state it is in
        connection.close()


# -- handshakes that are owed ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OwedRequest:
    """A request to another server that is still to be made, such as the rejection of an invitation."""

    request_nid: int
    kind: str
    room_id: str
    user_id: str
    candidates: bytes
    """A JSON list of the servers that can be asked."""
    content: bytes
    """A JSON object with further data, depending on the kind."""
    attempts: int
    retry_at_ts: int
    created_ts: int


def owe_request(
    connection: Connection, kind: str, room_id: str, user_id: str, candidates: bytes, content: bytes, now_ms: int
) -> None:
    """Store a request to be made; it replaces an earlier one for the same room and user."""
    cancel_requests(connection, room_id, user_id)
    connection.execute(
        insert(outbound_requests).values(
            kind=kind,
            room_id=room_id,
            user_id=user_id,
            candidates=candidates,
            content=content,
            attempts=0,
            retry_at_ts=now_ms,
            created_ts=now_ms,
        )
    )


def is_owed(connection: Connection, kind: str, room_id: str, user_id: str) -> bool:
    """Whether a handshake of this kind is owed for the user and the room."""
    table = outbound_requests.c
    statement = select(table.request_nid).where(table.room_id == room_id, table.user_id == user_id, table.kind == kind)
    return connection.execute(statement.limit(1)).first() is not None


def due_requests(connection: Connection, now_ms: int, limit: int) -> list[OwedRequest]:
    """The requests that are due, the longest due first."""
    table = outbound_requests.c
    statement = (
        select(
            table.request_nid,
            table.kind,
            table.room_id,
            table.user_id,
            table.candidates,
            table.content,
            table.attempts,
            table.retry_at_ts,
            table.created_ts,
        )
        .where(table.retry_at_ts <= now_ms)
        .order_by(table.retry_at_ts)
        .limit(limit)
    )
    return [OwedRequest(*row) for row in connection.execute(statement)]


def next_request_ts(connection: Connection, after_ts: int = 0) -> int | None:
    """When the first request becomes due after a time."""
    column = outbound_requests.c.retry_at_ts
    value = connection.execute(select(func.min(column)).where(column > after_ts)).scalar_one_or_none()
    return None if value is None else int(value)


def postpone_request(connection: Connection, request_nid: int, attempts: int, retry_at_ts: int) -> None:
    """Postpone a request."""
    connection.execute(
        update(outbound_requests)
        .where(outbound_requests.c.request_nid == request_nid)
        .values(attempts=attempts, retry_at_ts=retry_at_ts)
    )


def remove_request(connection: Connection, request_nid: int) -> None:
    """Delete a request that is done or given up."""
    connection.execute(delete(outbound_requests).where(outbound_requests.c.request_nid == request_nid))


def cancel_requests(connection: Connection, room_id: str, user_id: str) -> None:
    """Delete the requests for a room and user that are obsolete, because the user was invited again or joins."""
    table = outbound_requests.c
    connection.execute(delete(outbound_requests).where(table.room_id == room_id, table.user_id == user_id))


# -- transactions that we got ------------------------------------------------------------------------------------------


def latest_responses(connection: Connection, limit: int) -> list[tuple[str, str, bytes]]:
    """``(origin, txn_id, response)`` of the transactions that were answered last, oldest first."""
    table = received_transactions.c
    statement = select(table.origin, table.txn_id, table.response).order_by(table.ts.desc()).limit(limit)
    return [(row[0], row[1], bytes(row[2])) for row in reversed(connection.execute(statement).all())]


def store_responses(connection: Connection, answers: Sequence[tuple[str, str, bytes, int]]) -> None:
    """Store ``(origin, txn_id, response, ts)``, to answer transactions that are sent again."""
    rows = [{"origin": a[0], "txn_id": a[1], "response": a[2], "ts": a[3]} for a in answers]
    upsert(connection, received_transactions, rows, ["origin", "txn_id"])


def forget_responses(connection: Connection, before_ts: int) -> None:
    """Delete the responses from before a time: those transactions are not sent again."""
    connection.execute(delete(received_transactions).where(received_transactions.c.ts < before_ts))


def forget_destinations(connection: Connection, failing_before_ts: int) -> None:
    """Delete what is owed to servers that have been unreachable for too long."""
    gone = select(destinations.c.server_name).where(destinations.c.failing_since_ts < failing_before_ts)
    connection.execute(delete(outbound_pdus).where(outbound_pdus.c.server_name.in_(gone)))
