"""Store events that come out of band under the room version that came with them

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("events", sa.Column("claimed_version", sa.Text(), server_default=sa.text("('')"), nullable=False))
    op.drop_index("events_by_id", "events")
    op.create_index("events_by_id", "events", ["event_id", "room_nid", "claimed_version"], unique=True)
    # All that is known of a room that this server has never been in came out of band.
    op.execute(
        "UPDATE events SET claimed_version = (SELECT version FROM rooms WHERE rooms.room_nid = events.room_nid)"
        " WHERE room_nid IN (SELECT room_nid FROM rooms WHERE state_group IS NULL)"
    )
    op.execute(
        "DELETE FROM auth_chain_positions WHERE event_nid IN (SELECT event_nid FROM events WHERE claimed_version <> '')"
    )
