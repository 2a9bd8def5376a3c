"""Know when an invitation came, and find the changes of one membership without reading those of others

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

NID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("user_rooms", sa.Column("received_ts", NID))
    # With event_nid, so that SQLite takes it rather than the primary key, by which the rows are stored.
    op.create_index(
        "current_state_changes_by_key", "current_state_changes", ["room_nid", "state_key_nid", "position", "event_nid"]
    )
