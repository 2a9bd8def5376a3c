"""Know events and redactions by their room

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

NID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _let_rooms_share_event_ids()
    _key_redactions_by_room()
    # Edges into another room, which an earlier version drew where an event named one of another room.
    op.execute(
        "DELETE FROM event_edges WHERE (SELECT room_nid FROM events WHERE events.event_nid = event_edges.event_nid)"
        " <> (SELECT room_nid FROM events WHERE events.event_nid = event_edges.prev_nid)"
    )


def _let_rooms_share_event_ids() -> None:
    if op.get_context().dialect.name == "sqlite":
        # The constraint has no name there; this gives it one while the table is copied.
        naming = {"uq": "uq_%(table_name)s_%(column_0_name)s"}
        with op.batch_alter_table("events", naming_convention=naming) as batch_op:
            batch_op.drop_constraint("uq_events_event_id", type_="unique")
    else:
        op.drop_constraint("events_event_id_key", "events", type_="unique")
    op.create_index("events_by_id", "events", ["event_id", "room_nid"], unique=True)


def _key_redactions_by_room() -> None:
    op.rename_table("redactions", "old_redactions")
    op.create_table(
        "redactions",
        sa.Column("redacted_event_id", sa.Text(), nullable=False),
        sa.Column("room_nid", NID, nullable=False),
        sa.Column("redaction_nid", NID, nullable=False),
        sa.Column("applied", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("redacted_event_id", "room_nid", "redaction_nid", name=_key("redactions")),
        comment="A redaction may come before its target; applied says that it was found allowed.",
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO redactions (redacted_event_id, room_nid, redaction_nid, applied)"
        " SELECT r.redacted_event_id, e.room_nid, r.redaction_nid, r.applied"
        " FROM old_redactions r JOIN events e ON e.event_nid = r.redaction_nid"
    )
    op.drop_table("old_redactions")


def _key(table: str) -> str | None:
    # On PostgreSQL the old table still has the name that the key would get.
    return None if op.get_context().dialect.name == "sqlite" else f"{table}_by_room_pkey"
