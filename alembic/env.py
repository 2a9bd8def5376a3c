"""Runs migrations on the connection that homeserver.storage.migrate hands over, in the transaction it has begun."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from homeserver.storage.tables import FreeText, Name, metadata


def render_item(kind: str, item: Any, _autogenerate: Any) -> str | Literal[False]:
    """Migrations stand on their own: a type of ours is written as what it is in the database."""
    return "sa.Text()" if kind == "type" and isinstance(item, FreeText | Name) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_item=render_item,
    render_as_batch=True,  # SQLite cannot alter most of a table in place
    transactional_ddl=True,  # also on SQLite, where migrate.py begins the transaction
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
