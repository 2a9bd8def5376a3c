"""Real sockets and real TLS on the loopback interface, in the event loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from pathlib import Path

import trustme

Answer = bytes | Awaitable[bytes] | AsyncIterator[bytes]
"""What goes back, as it is or in pieces; nothing at all closes the connection."""


@lru_cache(maxsize=1)
def authority() -> trustme.CA:
    """The certificate authority that tests trust."""
    return trustme.CA()


def ca_file(directory: Path) -> Path:
    """Its certificate as a file."""
    path = directory / "ca.pem"
    authority().cert_pem.write_to_path(str(path))
    return path


@lru_cache(maxsize=16)
def server_context(*names: str) -> ssl.SSLContext:
    """TLS for a server with a certificate for these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    return context


class LoopbackServer:
    """Answers each request with what ``answer`` makes of it, and counts connections."""

    def __init__(self, answer: Callable[[str, dict[str, str], bytes], Answer]) -> None:
        self._answer = answer
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        """Request line, headers in lower case, body."""
        self.port = 0

    @contextlib.asynccontextmanager
    async def serve(self, context: ssl.SSLContext | None = None) -> AsyncIterator[LoopbackServer]:
        """Listen, with TLS if ``context`` is given."""
        tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks[task] = writer
            try:
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await self._converse(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in tasks.values():
                writer.transport.abort()
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.requests.append((head[0], headers, body))
            answer = self._answer(head[0], headers, body)
            if isinstance(answer, AsyncIterator):
                async for piece in answer:
                    writer.write(piece)
                    await writer.drain()
                return
            whole = answer if isinstance(answer, bytes) else await answer
            writer.write(whole)
            await writer.drain()
            if b"connection: close" in whole.lower() or not whole:
                return


def http_answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """An HTTP answer as bytes."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body
