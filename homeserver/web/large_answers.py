"""Answers that are larger than what a connection takes at once.

A reader that does not read must cost no memory: 60 clients that ask for 10 MB each and read nothing would hold 600 MB.
So an answer is written in pieces, as the connection takes them, and what a slow reader has not taken soon waits in a
temporary file. (``server.BoundedHttp`` closes the connection of a reader that reads nothing for too long.)
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import structlog
from starlette.types import Scope, Send

from homeserver.web.shares import give_back_all

logger = structlog.get_logger(__name__)

PIECE_BYTES = 64 * 1024
"""About what a connection buffers; smaller answers are written at once."""
IN_MEMORY_SECONDS = 0.05
"""How long a reader may take for one piece before the rest of its answer is moved to a file."""
SPOOLED_BYTES_MAX = 2**30
"""How much of all answers together may wait in files. Beyond that a slow reader's connection is closed."""
ABORT = "homeserver.abort"
"""In a request's scope: closes its connection at once, without writing what is still to be written."""


class LargeAnswers:
    """Writes large answers, and keeps count of what waits in files."""

    def __init__(self, directory: Path | None = None) -> None:
        """Temporary files are made in ``directory``: often, /tmp is memory. They have no name, and end with the
        process.
        """
        self._directory = directory
        self.spooled = 0
        """How many bytes wait in files."""

    async def write(self, body: bytes, scope: Scope, send: Send) -> None:
        """Write the whole body of an answer; the caller must not keep it."""
        size, position = len(body), 0
        while position < size:
            piece = body[position : position + PIECE_BYTES]
            try:
                async with asyncio.timeout(IN_MEMORY_SECONDS):
                    await _send(send, piece, is_last=position + len(piece) == size)
            except TimeoutError:
                break  # the server waits before it writes, so nothing of the piece was written
            position += len(piece)
        if position == size:
            return
        length = size - position
        if self.spooled + length > SPOOLED_BYTES_MAX:
            logger.warning("a connection is closed: too much waits for slow readers", bytes=self.spooled)
            abort: Callable[[], None] | None = scope.get(ABORT)
            if abort is not None:
                abort()
                return await _send(send, b"", is_last=True)
        self.spooled += length
        try:
            with await asyncio.to_thread(self._spool, body, position) as file:
                del body
                give_back_all(scope)
                await self._write_file(file, length, send)
        finally:
            self.spooled -= length

    async def _write_file(self, file: IO[bytes], length: int, send: Send) -> None:
        left = length
        while left:
            piece = await asyncio.to_thread(file.read, PIECE_BYTES)
            left -= len(piece)
            await _send(send, piece, is_last=not left)

    def _spool(self, body: bytes, position: int) -> IO[bytes]:
        file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - the caller closes it
        try:
            file.write(memoryview(body)[position:])
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file


async def _send(send: Send, piece: bytes, *, is_last: bool) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": not is_last})
