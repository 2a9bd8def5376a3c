"""One run: people meet in rooms, disasters strike while they go on, everything heals, and then what must hold is held.

The seed decides everything. ``simulate`` is a function of its arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from homeserver.protocol.room_versions import ROOM_VERSIONS
from tests.simulation.actors import Actor, Disasters, accept_at_once, look, start_again
from tests.simulation.checks import CHECKS, extremities_of, find, owed_by
from tests.simulation.clients import Refused, Unanswered
from tests.simulation.machine import Log, machine
from tests.simulation.malice import MALLORY, Mallory
from tests.simulation.mutations import MUTATIONS
from tests.simulation.network import Network
from tests.simulation.trace import Trace
from tests.simulation.virtual_loop import VirtualLoop
from tests.simulation.workspace import template, workspace
from tests.simulation.world import World

VERSIONS = tuple(str(number) for number in range(1, 13))
SERVERS = (2, 3, 3)
MALICE = 0.5
"""How often there is a malicious server."""
BOTS = 0.5
"""How many users have a bot that accepts invitations the moment that they show."""
ACTIONS = (4, 8, 12)
"""Of each user: one of these."""
REST_S = 12.0
ROUNDS_MAX = 25
"""How often servers speak until they have heard of everything that the others know."""
READINGS_MAX = 3
"""How often everything is read, until reading brings nothing new."""
EMPTY_QUEUES_S = 7200.0
"""After an outage a server is tried again within an hour."""


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    seed: int
    version: str
    hash: str
    failures: dict[str, list[str]] = field(default_factory=dict)
    """What is wrong, by the name of the check."""
    trace: list[str] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    """Of virtual time."""
    cpu: float = 0.0
    """Seconds of the processor that the run took."""


def version_of(seed: int) -> str:
    """The room version of a run for which none was asked."""
    return VERSIONS[seed % len(VERSIONS)]


def simulate(seed: int, version: str | None = None, *, mutation: str | None = None, strict: bool = False) -> Outcome:
    """Run a seed. Never raises for what a server does wrong: the outcome says it.

    ``mutation`` puts a fault back (``mutations``). ``strict`` leaves out no attack that is known to succeed.

    For a process of its own (``processes``): what it leaves behind must not be cleaned up.
    """
    version = version or version_of(seed)
    loop = VirtualLoop(random.Random(f"threads {seed}"))
    directory = Path(tempfile.mkdtemp(prefix=f"{seed}-", dir=workspace()))
    trace = Trace()
    outcome = Outcome(seed, version, "")
    began = time.process_time()
    gc.disable()  # when it runs depends on more than the seed
    try:
        with MUTATIONS[mutation]() if mutation else contextlib.nullcontext(), machine(seed, loop) as log:
            loop.set_exception_handler(lambda _, context: _note_error(log, context))
            asyncio.set_event_loop(loop)
            try:
                loop.run_until_complete(_run(outcome, trace, directory, log, strict))
            except Exception as error:
                logging.disable(logging.NOTSET)
                outcome.failures.setdefault("the_run_comes_to_its_end", []).append(repr(error))
                trace.lines.append(repr(error))
            outcome.hash, outcome.trace = trace.hash, trace.lines
            outcome.steps, outcome.seconds = loop.steps, loop.now
            outcome.cpu = time.process_time() - began
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return outcome


def _note_error(log: Log, context: dict[str, Any]) -> None:
    if (error := context.get("exception")) is not None:
        log.errors.append(f"{context['message']}: {error!r}")


async def _run(outcome: Outcome, trace: Trace, directory: Path, log: Log, strict: bool) -> None:
    chance = random.Random(f"world {outcome.seed}")
    network = Network(random.Random(f"network {outcome.seed}"), trace)
    world = World(outcome.seed, outcome.version, chance, trace, network)
    await world.populate(directory, template(), chance.choice(SERVERS))
    if chance.random() < MALICE:
        world.mallory = Mallory(world, strict=strict)
    async with _background(*_bystanders(world)):
        await _meet(world)
        await _live(world)
    await _heal(world)
    for _ in range(READINGS_MAX):
        await _settle(world)
        found = await find(world, log.errors)
        if _agree(world):
            break  # else scrolling back has brought in what waited for it, and nobody has said anything after it yet
    for check in CHECKS:
        if wrong := list(check(found)):
            outcome.failures[check.__name__] = wrong
    for server in world.servers:
        server.crash()


def _bystanders(world: World) -> Iterator[Coroutine[Any, Any, None]]:
    """What second devices do: each looks now and then, or is that of a bot."""
    for devices in world.devices.values():
        for device in devices[1:]:
            yield accept_at_once(world, device) if world.chance.random() < BOTS else look(world, device)


async def _meet(world: World) -> None:
    """Two rooms, a public one that most join, and one by invitation, while all is well."""
    creators = world.chance.sample(world.users, 2)
    levels: dict[str, Any] = {"state_default": world.chance.choice([0, 50]), "invite": 0}
    if world.mallory is not None and world.chance.random() < 0.5:
        levels["users"] = {MALLORY: world.chance.choice([50, 60])}
        if not ROOM_VERSIONS[world.version].creators_have_infinite_power:
            levels["users"] |= dict.fromkeys(creators, 100)
    for creator, preset in zip(creators, ("public_chat", "private_chat"), strict=True):
        request = {"preset": preset, "room_version": world.version, "power_level_content_override": levels}
        room_id = (await world.device(creator).ask("POST", "/createRoom", request))["room_id"]
        world.rooms.append(room_id)
        for user_id in world.users:
            if user_id == creator or world.chance.random() < 0.2:
                continue
            if preset == "private_chat":
                await world.device(creator).ask("POST", f"/rooms/{quote(room_id)}/invite", {"user_id": user_id})
            else:
                via = world.server_of(creator).name
                await world.device(user_id).ask("POST", f"/join/{quote(room_id)}", {}, via=via)
    if world.mallory is not None:
        await _meet_mallory(world, world.mallory, *creators)


async def _meet_mallory(world: World, mallory: Mallory, host: str, liar_about: str) -> None:
    """Mallory joins the public room, and lies about another, which only its creator is in as yet."""
    await mallory.join(world.rooms[0], world.server_of(host).name)
    request = {"preset": "public_chat", "room_version": world.version}
    room_id = (await world.device(liar_about).ask("POST", "/createRoom", request))["room_id"]
    for user_id in world.users:
        if world.server_of(user_id) is not world.server_of(liar_about) and world.chance.random() < 0.5:
            await mallory.lie_about(room_id, user_id)
            if world.chance.random() < 0.5:
                via = world.server_of(liar_about).name
                await world.device(user_id).ask("POST", f"/join/{quote(room_id)}", {}, via=via)
    world.rooms.append(room_id)


async def _live(world: World) -> None:
    """Everybody does something, at first in peace."""
    actions = world.chance.choice(ACTIONS)
    async with _background(*([world.mallory.attack()] if world.mallory is not None else [])):
        await asyncio.gather(*(Actor(world, user_id).act(actions // 2) for user_id in world.users))
        async with _background(Disasters(world).strike(), start_again(world)):
            await asyncio.gather(*(Actor(world, user_id).act(actions) for user_id in world.users))
    if world.mallory is not None:
        world.mallory.reform()


@contextlib.asynccontextmanager
async def _background(*coroutines: Any) -> AsyncIterator[None]:
    tasks = [asyncio.get_running_loop().create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _heal(world: World) -> None:
    world.trace.note("everything heals")
    world.network.heal()
    for server in world.servers:
        if server.life is not None:
            server.life.dies_after = None
        if not server.is_running:
            await server.start()
    await asyncio.sleep(REST_S)


async def _settle(world: World) -> None:
    """Have servers say something until each has heard of all that the others know, then wait for queues to empty."""
    for round_number in range(ROUNDS_MAX):
        if _agree(world) and round_number:
            break
        for server in world.servers:
            for user_id in server.users:
                with contextlib.suppress(Refused, Unanswered):
                    await world.device(user_id).sync()
            for room_id in world.rooms:
                for user_id in server.users:
                    if room_id in world.device(user_id).rooms:
                        with contextlib.suppress(Refused, Unanswered):
                            # A member may do this whatever the power levels are.
                            name = {"membership": "join", "displayname": f"{user_id} {round_number}"}
                            await world.device(user_id).set_state(room_id, "m.room.member", name, user_id)
                            await asyncio.sleep(1)
                            break
        await asyncio.sleep(REST_S)
    await asyncio.sleep(EMPTY_QUEUES_S if any(map(owed_by, world.servers)) else 1)


def _agree(world: World) -> bool:
    for room_id in world.rooms:
        inside = [s for s in world.servers if any(room_id in world.device(user_id).rooms for user_id in s.users)]
        if len({frozenset(extremities_of(server, room_id)) for server in inside}) > 1:
            return False
    return True
