"""Finds files of the server that other users of the machine can read or change."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from homeserver.config import Config

SQLITE = "sqlite:///"


def files_open_to_others(config: Config) -> list[Path]:
    """The files with secrets or messages that are open to users outside the file's group.

    The group is left alone, because packages often give a configuration file to root and the server's group. A file in
    a directory that others cannot enter is closed. (``SigningKeys`` looks at signing keys, more strictly.)
    """
    return [path for path in _private_files(config) if _is_open(path)]


def _private_files(config: Config) -> Iterator[Path]:
    if config.file is not None:
        yield config.file
    for listener in config.listeners:
        if listener.tls_private_key is not None:
            yield listener.tls_private_key
    if config.database.url.startswith(SQLITE):
        file = config.database.url.removeprefix(SQLITE)
        yield from (Path(file + suffix) for suffix in ("", "-wal", "-shm"))


def _is_open(path: Path) -> bool:
    try:
        entrance = path.resolve().parent.stat().st_mode
        return bool(path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH)) and bool(entrance & stat.S_IXOTH)
    except OSError:
        return False
