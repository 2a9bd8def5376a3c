"""kept server keys"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Bring the schema from the revision before to this one: several responses of one server can be kept."""
    op.rename_table("server_key_responses", "former_server_key_responses")
    op.create_table(
        "server_key_responses",
        sa.Column("server_name", sa.Text(), nullable=False),
        sa.Column(
            "fetched_ts", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("valid_until_ts", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("server_name", "fetched_ts"),
        comment="For our answers as a notary: the latest signed JSON, and earlier ones with keys that no later one has.",
    )
    op.execute(
        "INSERT INTO server_key_responses (server_name, fetched_ts, response, valid_until_ts) "
        "SELECT server_name, fetched_ts, response, valid_until_ts FROM former_server_key_responses"
    )
    op.drop_table("former_server_key_responses")
