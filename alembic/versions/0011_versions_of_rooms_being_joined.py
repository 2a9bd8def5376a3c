"""Know the versions of rooms that are being joined, to keep the events that come meanwhile

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("under_way", sa.Column("version", sa.Text()))
