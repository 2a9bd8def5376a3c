"""typing is not stored"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Bring the schema from the revision before to this one."""
    with op.batch_alter_table("typing", schema=None) as batch_op:
        batch_op.drop_index("typing_by_position")
    op.drop_table("typing")
