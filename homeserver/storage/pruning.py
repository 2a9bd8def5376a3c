"""Deleting rows that are not needed any more, a bounded number at a time."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select, tuple_

from homeserver.storage.tables import client_transactions

ROWS_AT_ONCE_MAX = 5000


def prune_client_transactions(connection: Connection, before_ts: int) -> int:
    """Delete transaction IDs of clients from before a time, in ms; returns how many."""
    table = client_transactions.c
    key = (table.user_id, table.device_id, table.scope, table.txn_id)
    old = select(*key).where(table.ts < before_ts).limit(ROWS_AT_ONCE_MAX)
    return connection.execute(delete(client_transactions).where(tuple_(*key).in_(old))).rowcount
