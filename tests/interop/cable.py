"""A cable that can be pulled: stands between a server's federation port and those who connect to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psutil

from tests.interop.servers import Server

CHUNK_BYTES = 64 * 1024


class Cable:
    """Forwards connections to one server, but not those of processes that are cut off from it."""

    def __init__(self, port: int) -> None:
        self.port = port
        """Where others connect to: the port in the server's name."""
        self.cut_off: set[int] = set()
        """The process IDs whose connections do not get through."""
        self.is_cut = False
        """Whether none gets through."""
        self._connections: dict[asyncio.StreamWriter, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def to(self, server: Server) -> AsyncIterator[Cable]:
        """Plug it in."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            with suppress(OSError):
                await self._forward(server.listen_port, reader, writer)
            self._connections.pop(writer, None)
            self._tasks.discard(task)
            writer.transport.abort()

        listener = await asyncio.start_server(accept, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            listener.close()
            self._drop(list(self._connections))
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def pull(self, *processes: int) -> None:
        """Cut these processes off from the server, or all of them if none is named; what is open breaks."""
        self.cut_off.update(processes)
        self.is_cut = self.is_cut or not processes
        self._drop([writer for writer, owner in self._connections.items() if self.is_cut or owner in self.cut_off])

    def plug_in(self) -> None:
        """Let everything through again."""
        self.cut_off.clear()
        self.is_cut = False

    def _drop(self, writers: list[asyncio.StreamWriter]) -> None:
        for writer in writers:
            writer.transport.abort()

    async def _forward(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        owner = _owner(writer.get_extra_info("peername")[1]) if self.cut_off else 0
        if self.is_cut or owner in self.cut_off:
            return
        self._connections[writer] = owner
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", port)
        pipes = [
            asyncio.create_task(_pipe(reader, onward_writer)),
            asyncio.create_task(_pipe(onward_reader, writer)),
        ]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            onward_writer.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


def _owner(port: int) -> int:
    """The process whose connection comes from this local port."""
    for connection in psutil.net_connections(kind="tcp"):
        if connection.laddr and connection.laddr.port == port and connection.pid is not None:
            return connection.pid
    return 0
