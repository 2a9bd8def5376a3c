"""Prevents two servers from serving one SQLite database: each of them relies on its own memory of the rooms there."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url

from homeserver.errors import ConfigurationError

SUFFIX = "-serving"


@contextmanager
def sole_use(database_url: str) -> Iterator[None]:
    """Lock a database for serving, until the context or the process ends.

    PostgreSQL databases may be served by several processes. Raises ``ConfigurationError`` if another process serves
    this SQLite database.
    """
    url = make_url(database_url)
    if url.get_backend_name() != "sqlite":
        yield
        return
    Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    # The file stays; its lock ends with the process, even on a crash.
    with open(f"{url.database}{SUFFIX}", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"another process serves {url.database} already. Stop it first, or use PostgreSQL (database.url): "
                "several processes can share a database there"
            ) from None
        yield
