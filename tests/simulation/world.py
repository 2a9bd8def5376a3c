"""All there is in one run: servers, their users' devices, the rooms, and what was promised."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.simulation.clients import Device
from tests.simulation.network import Network
from tests.simulation.servers import Server
from tests.simulation.trace import Trace

if TYPE_CHECKING:
    from tests.simulation.malice import Mallory

NAMES = ("one.test:8448", "two.test:8448", "three.test:8448")
LOCALPARTS = ("ann", "ben")


@dataclass(frozen=True, slots=True)
class Promise:
    """What a server has acknowledged to a client."""

    user_id: str
    room_id: str
    event_id: str


@dataclass(frozen=True, slots=True)
class RefusedAcceptance:
    """A user accepted an invitation, and was refused though all servers could be reached."""

    user_id: str
    room_id: str
    reason: str


@dataclass(slots=True)
class World:
    """See above."""

    seed: int
    version: str
    chance: random.Random
    trace: Trace
    network: Network
    servers: list[Server] = field(default_factory=list)
    devices: dict[str, list[Device]] = field(default_factory=dict)
    """By user ID; the first is the one that the user acts with."""
    rooms: list[str] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    refused_acceptances: list[RefusedAcceptance] = field(default_factory=list)
    mallory: Mallory | None = None
    """The malicious server, if there is one."""
    is_calm: bool = True
    """Whether all servers run and reach each other, and have done so for a while."""

    @property
    def users(self) -> list[str]:
        return list(self.devices)

    def server_of(self, user_id: str) -> Server:
        name = user_id.partition(":")[2]
        return next(server for server in self.servers if server.name == name)

    def device(self, user_id: str) -> Device:
        return self.devices[user_id][0]

    async def populate(self, directory: Path, template: Path, servers: int) -> None:
        """Start the honest servers, with users who have two devices each."""
        for name in NAMES[:servers]:
            folder = directory / name.partition(".")[0]
            server = Server(name, folder, template, self.network, self.trace)
            await server.start()
            self.servers.append(server)
            for localpart in LOCALPARTS:
                user_id = server.add_user(localpart, "ACTS", "IDLE", "FRESH")
                self.devices[user_id] = [self._device(user_id, name) for name in ("ACTS", "IDLE")]

    def fresh_device(self, user_id: str) -> Device:
        """A device that has never asked anything."""
        return self._device(user_id, "FRESH")

    def _device(self, user_id: str, name: str) -> Device:
        return Device(user_id, name, self.network, self.trace, random.Random(f"{self.seed} {user_id} {name}"))
