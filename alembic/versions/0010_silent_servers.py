"""Remember which servers do not answer when they are asked for history

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

NID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "silent_servers",
        sa.Column("server_name", sa.Text(), nullable=False),
        sa.Column("since_ts", NID, nullable=False),
        sa.Column("last_ts", NID, nullable=False),
        sa.Column("times", NID, nullable=False),
        sa.PrimaryKeyConstraint("server_name"),
        comment="Servers that do not answer when they are asked for history: so often, first and last at these times.",
        sqlite_with_rowid=False,
    )
