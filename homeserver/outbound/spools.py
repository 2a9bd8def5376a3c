"""Bodies of answers: in memory while they are small, and in temporary files when they are not.

A temporary file has no name and is gone with the process. It lies where ``TMPDIR`` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
import weakref
from typing import IO

MEMORY_BYTES_MAX = 256 * 1024
"""How much of a body is held in memory before it goes to the file."""
SPOOLED_BYTES_MAX = 1024 * 1024 * 1024
"""How much all bodies together may take on the disk."""


class SpoolFull(Exception):
    """A body is larger than it may be, or too many large ones are here at once."""


class Spools:
    """Makes spools that share a budget of bytes on the disk. One is enough for a process."""

    def __init__(self, spooled_bytes_max: int = SPOOLED_BYTES_MAX) -> None:
        self._bytes_max = spooled_bytes_max
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def spooled_bytes(self) -> int:
        """How many bytes are on the disk now."""
        return self._bytes

    def new(self, bytes_max: int) -> Spool:
        """An empty spool for at most this many bytes."""
        return Spool(self, bytes_max)

    def take(self, size: int) -> None:
        """Reserve bytes of the budget. Raises ``SpoolFull``."""
        with self._lock:
            if self._bytes + size > self._bytes_max:
                raise SpoolFull("too many large answers are held at once")
            self._bytes += size

    def give_back(self, size: int) -> None:
        """Return bytes to the budget."""
        with self._lock:
            self._bytes -= size


class Spool:
    """One body: written once from its beginning, then read anywhere, by any thread.

    It frees its file and its share of the budget when ``close`` is called or nothing refers to it any more.
    """

    def __init__(self, spools: Spools, bytes_max: int) -> None:
        self.size = 0
        """How many bytes were written."""
        self._spools = spools
        self._bytes_max = bytes_max
        self._memory = bytearray()
        self._file = _File(spools)
        self._finalizer = weakref.finalize(self, self._file.close)

    @property
    def is_in_memory(self) -> bool:
        """Whether nothing of it is on the disk."""
        return self._file.size == 0

    async def write(self, chunk: bytes) -> None:
        """Append. Raises ``SpoolFull``."""
        if self.size + len(chunk) > self._bytes_max:
            raise SpoolFull(f"the answer is larger than {self._bytes_max} bytes")
        self.size += len(chunk)
        self._memory += chunk
        if len(self._memory) > MEMORY_BYTES_MAX:
            part, self._memory = bytes(self._memory), bytearray()
            await asyncio.to_thread(self._file.append, part)

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset`` on; empty behind the end."""
        on_disk = self._file.size
        if offset >= on_disk:
            return bytes(self._memory[offset - on_disk : offset - on_disk + length])
        found = self._file.read(offset, min(length, on_disk - offset))
        return found + bytes(self._memory[: length - len(found)])

    def close(self) -> None:
        """Free everything; it cannot be read any more."""
        self._finalizer()
        self._memory = bytearray()


class _File:
    """The file of a spool. It is written and closed under a lock: a write may be under way in a thread when its request
    is cancelled, and must not meet the descriptor of another file."""

    def __init__(self, spools: Spools) -> None:
        self.size = 0
        self._spools = spools
        self._file: IO[bytes] | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def append(self, part: bytes) -> None:
        with self._lock:
            if self._is_closed:
                raise SpoolFull("the answer is not wanted any more")
            self._spools.take(len(part))
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close()
                _write_whole(self._file.fileno(), part)
            except BaseException:
                self._spools.give_back(len(part))
                raise
            self.size += len(part)

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            if self._file is None:
                raise SpoolFull("the answer is not held any more")
            return os.pread(self._file.fileno(), length, offset)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
                self._spools.give_back(self.size)


def _write_whole(file: int, part: bytes) -> None:
    rest = memoryview(part)
    while rest:
        rest = rest[os.write(file, rest) :]
