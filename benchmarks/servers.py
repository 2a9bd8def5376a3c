"""Where the benchmark finds its servers: its own, made for it, or one that runs already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.matrix import Site
from tests.interop.servers import Authority, OurServer

QUIET = '[logging]\nlevel = "warning"\n'


class NotForRunningServer(Exception):
    """A path that needs a server of the benchmark's own."""


@dataclass
class Bench:
    """What a path is measured on."""

    seconds: float
    """How long the paths last whose length is free."""
    site: Site
    pids: list[int]
    """The server's process; empty if it is not known, which leaves CPU and memory out."""
    authority: Authority | None = None
    directory: Path | None = None
    server: OurServer | None = None
    events: int = 0
    """How many events the benchmark has made, roughly."""
    _others: list[OurServer] = field(default_factory=list)

    @property
    def own_server(self) -> OurServer:
        """The server, if the benchmark started it."""
        if self.server is None:
            raise NotForRunningServer("needs a server of its own")
        return self.server

    async def restart(self) -> float:
        """Stop the server and start it again; the seconds until it answers."""
        server = self.own_server
        await asyncio.to_thread(server.stop)
        self.site.http.close()
        took = await asyncio.to_thread(server.start)
        self.pids[:] = [server.pid]
        return took

    async def second_server(self) -> OurServer:
        """Another of our servers, which federates with the first."""
        if not self._others:
            self._others.append(self._new_server("second"))
            await asyncio.to_thread(self._others[0].start)
        return self._others[0]

    def _new_server(self, name: str) -> OurServer:
        if self.directory is None or self.authority is None:
            raise NotForRunningServer("needs servers of its own")
        return OurServer(name, self.directory, self.authority, settings=QUIET)

    def kill(self) -> None:
        """End what was started."""
        for server in (*self._others, *([self.server] if self.server else [])):
            server.kill()


@asynccontextmanager
async def own_servers(directory: Path, seconds: float) -> AsyncIterator[Bench]:
    """A new server on SQLite in this folder."""
    authority = Authority(directory / "authority")
    server = OurServer("first", directory, authority, settings=QUIET)
    await asyncio.to_thread(server.start)
    bench = Bench(seconds, Site(server.base_url), [server.pid], authority, directory, server)
    try:
        yield bench
    finally:
        bench.site.http.close()
        bench.kill()


@asynccontextmanager
async def running_server(base_url: str, pid: int | None, seconds: float) -> AsyncIterator[Bench]:
    """A server that runs already, with open registration and without rate limits."""
    bench = Bench(seconds, Site(base_url), [] if pid is None else [pid])
    try:
        yield bench
    finally:
        bench.site.http.close()
