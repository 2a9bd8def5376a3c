"""Users who do what users do, at random, and the disasters that befall their servers meanwhile.

To add an action: write a method ``do_<action>`` of ``Actor`` and give it a weight in ``ACTIONS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from tests.simulation.clients import Device, Refused, RoomView, Unanswered
from tests.simulation.malice import MALLORY
from tests.simulation.world import Promise, RefusedAcceptance, World

ACTIONS = {
    "send": 12,
    "edit": 2,
    "redact": 3,
    "set_state": 6,
    "change_levels": 3,
    "give_role": 1,
    "invite": 4,
    "kick": 2,
    "ban": 1,
    "unban": 1,
    "leave": 2,
    "come_back": 5,
    "move_out": 2,
    "upgrade": 0.3,
    "read": 2,
    "type": 1,
    "scroll": 2,
}
INTERVAL_S_MAX = 3.0


class Actor:
    """A user who acts with one device, on what that device knows."""

    def __init__(self, world: World, user_id: str, device: Device | None = None) -> None:
        self._world = world
        self._chance = random.Random(f"{world.seed} actor {user_id}")
        self.user_id = user_id
        self.device = device or world.device(user_id)
        self._number = 0

    async def act(self, actions: int) -> None:
        """Do some things, one after the other."""
        for _ in range(actions):
            await asyncio.sleep(self._chance.uniform(0, INTERVAL_S_MAX))
            try:
                if self._chance.random() < 0.6:
                    await self.device.sync(self._chance.choice([0, 0, 1]))
                await self._answer_invitations()
                name = self._chance.choices(list(ACTIONS), list(ACTIONS.values()))[0]
                action: Callable[[], Awaitable[None]] = getattr(self, f"do_{name}")
                await action()
            except (Refused, Unanswered):
                continue

    async def _answer_invitations(self) -> None:
        for room_id in sorted(self.device.invited):
            if self._chance.random() < 0.2:
                await self._ask(f"/rooms/{quote(room_id)}/leave")
            elif self._chance.random() < 0.8:
                await self.accept(room_id)
            self.device.invited.discard(room_id)

    async def accept(self, room_id: str) -> None:
        """Accept an invitation, and take note where that is refused without reason."""
        was_calm = self._world.is_calm
        try:
            await self._ask(f"/rooms/{quote(room_id)}/join")
        except Refused as error:
            if was_calm and self._world.is_calm and error.status == 403:
                self._world.refused_acceptances.append(RefusedAcceptance(self.user_id, room_id, str(error)))
            raise

    # -- actions -------------------------------------------------------------------------------------------------------

    async def do_send(self) -> None:
        room_id = self._room()
        for _ in range(self._chance.choice([1, 1, 1, 4])):
            await self._send(room_id, {"msgtype": "m.text", "body": self._text()})

    async def do_edit(self) -> None:
        room_id = self._room()
        target = self._event(room_id)
        relation = {"rel_type": "m.replace", "event_id": target}
        new = {"msgtype": "m.text", "body": self._text()}
        await self._send(room_id, {**new, "m.new_content": new, "m.relates_to": relation})

    async def do_redact(self) -> None:
        room_id = self._room()
        target = self._event(room_id)
        self._promised(room_id, await self.device.send(room_id, "", {"reason": self._text()}, redacts=target))

    async def do_set_state(self) -> None:
        kind, content = self._chance.choice(
            [
                ("m.room.topic", {"topic": self._text()}),
                ("m.room.name", {"name": self._text()}),
                ("org.example.note", {"note": self._text()}),
                ("m.room.join_rules", {"join_rule": self._chance.choice(["public", "invite", "public"])}),
            ]
        )
        room_id = self._room()
        self._promised(room_id, await self.device.set_state(room_id, kind, content))

    async def do_change_levels(self) -> None:
        room_id = self._room()
        path = f"/rooms/{quote(room_id)}/state/m.room.power_levels"
        levels = await self.device.ask("GET", path)
        users = dict(levels.get("users", {}))
        users[self._somebody()] = self._chance.choice([0, 50, 60, 100])
        self._promised(room_id, await self.device.set_state(room_id, "m.room.power_levels", {**levels, "users": users}))

    async def do_give_role(self) -> None:
        path = f"/_homeserver/v1/rooms/{quote(self._room())}/roles/{quote(self._somebody())}"
        await self.device.ask("PUT", path, {"role": self._chance.choice(["owner", "moderator", "member"])})

    async def do_invite(self) -> None:
        await self._ask(f"/rooms/{quote(self._room())}/invite", user_id=self._somebody())

    async def do_kick(self) -> None:
        await self._ask(f"/rooms/{quote(self._room())}/kick", user_id=self._nuisance())

    async def do_ban(self) -> None:
        await self._ask(f"/rooms/{quote(self._room())}/ban", user_id=self._nuisance())

    async def do_unban(self) -> None:
        await self._ask(f"/rooms/{quote(self._room())}/unban", user_id=self._somebody())

    async def do_leave(self) -> None:
        await self._ask(f"/rooms/{quote(self._room())}/leave")

    async def do_come_back(self) -> None:
        room_id = self._chance.choice(self._world.rooms)
        via = self._chance.choice(self._world.servers).name
        await self.device.ask("POST", f"/join/{quote(room_id)}", {}, via=via)

    async def do_move_out(self) -> None:
        """Leave together with all others of the own server, which learns nothing of the room until somebody is back.

        The device does not sync meanwhile, and somebody changes the state.
        """
        room_id = self._room()
        server = self._world.server_of(self.user_id)
        inside = [user for user in self._world.users if room_id in self._world.device(user).rooms]
        for user_id in inside:
            if user_id in server.users:
                await self._world.device(user_id).ask("POST", f"/rooms/{quote(room_id)}/leave", {})
        await asyncio.sleep(self._chance.uniform(0.5, 2))
        note = {"note": self._text()}
        for user_id in inside:
            if user_id not in server.users:
                with contextlib.suppress(Refused, Unanswered):
                    await self._world.device(user_id).set_state(room_id, "org.example.note", note, self.user_id[1:])
        await asyncio.sleep(self._chance.uniform(0.5, 2))
        via = self._chance.choice(self._world.servers).name
        await self.device.ask("POST", f"/join/{quote(room_id)}", {}, via=via)

    async def do_upgrade(self) -> None:
        path = f"/rooms/{quote(self._room())}/upgrade"
        answer = await self.device.ask("POST", path, {"new_version": self._world.version})
        self._world.rooms.append(answer["replacement_room"])

    async def do_read(self) -> None:
        room_id = self._room()
        await self._ask(f"/rooms/{quote(room_id)}/receipt/m.read/{quote(self._event(room_id))}")

    async def do_type(self) -> None:
        path = f"/rooms/{quote(self._room())}/typing/{quote(self.user_id)}"
        await self.device.ask("PUT", path, {"typing": self._chance.random() < 0.7, "timeout": 5000})

    async def do_scroll(self) -> None:
        room_id = self._room()
        gaps = self.device.rooms[room_id].gaps
        await self.device.page(room_id, self._chance.choice(gaps) if gaps else None)

    # -- with what -----------------------------------------------------------------------------------------------------

    async def _ask(self, path: str, **body: str) -> None:
        await self.device.ask("POST", path, body)

    async def _send(self, room_id: str, content: dict[str, object]) -> None:
        self._promised(room_id, await self.device.send(room_id, "m.room.message", content))

    def _promised(self, room_id: str, event_id: str) -> None:
        self._world.promises.append(Promise(self.user_id, room_id, event_id))

    def _room(self) -> str:
        """A room that the user is in, as far as the device knows."""
        if not self.device.rooms:
            raise Refused(0, {"error": "in no room"})
        return self._chance.choice(sorted(self.device.rooms))

    def _event(self, room_id: str) -> str:
        view: RoomView = self.device.rooms[room_id]
        if not view.events:
            raise Refused(0, {"error": "no event"})
        return self._chance.choice(list(view.events)[-20:])

    def _somebody(self) -> str:
        return self._chance.choice(self._world.users)

    def _nuisance(self) -> str:
        """Somebody to be removed."""
        return self._chance.choice([*self._world.users, *([MALLORY, MALLORY] if self._world.mallory else [])])

    def _text(self) -> str:
        self._number += 1
        return f"{self.user_id} {self._number}"


async def look(world: World, device: Device) -> None:
    """A device that syncs now and then, and is idle for long at times. Runs until it is cancelled."""
    chance = random.Random(f"{world.seed} look {device.user_id} {device.name}")
    while True:
        await asyncio.sleep(chance.choice([0.2, 1, 3, 15]))
        try:
            await device.sync(chance.choice([0, 2, 5]))
        except (Refused, Unanswered):
            continue


async def accept_at_once(world: World, device: Device) -> None:
    """A bot: it waits for invitations and accepts each the moment that it shows. Runs until it is cancelled."""
    actor = Actor(world, device.user_id, device)
    while True:
        try:
            await device.sync(30)
            for room_id in sorted(device.invited):
                await actor.accept(room_id)
        except Unanswered:
            await asyncio.sleep(1)
        except Refused:
            continue


class Disasters:
    """What happens to servers and to the network between them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = random.Random(f"{world.seed} disasters")

    async def strike(self) -> None:
        """One after the other, until it is cancelled."""
        while True:
            await asyncio.sleep(self._chance.uniform(0.5, 5))
            self._world.is_calm = False
            strike = self._chance.choice(
                [self._split, self._split, self._one_way, self._isolate, self._storm, self._heal, self._crash]
            )
            strike()

    def _pair(self) -> tuple[str, str]:
        one, other = self._chance.sample([server.name for server in self._world.servers], 2)
        return one, other

    def _split(self) -> None:
        one, other = self._pair()
        self._world.trace.note(f"split {one} {other}")
        self._world.network.split(one, other)

    def _one_way(self) -> None:
        one, other = self._pair()
        self._world.trace.note(f"cut {one} {other}")
        self._world.network.cut.add((one, other))

    def _isolate(self) -> None:
        one, _ = self._pair()
        self._world.trace.note(f"isolate {one}")
        for server in self._world.servers:
            if server.name != one:
                self._world.network.split(one, server.name)

    def _storm(self) -> None:
        weather = self._world.network.weather
        weather.delay_s = self._chance.choice([0.1, 1, 3])
        weather.lose_request = self._chance.choice([0, 0.2, 0.5])
        weather.lose_answer = self._chance.choice([0, 0.2, 0.5])
        weather.repeat = self._chance.choice([0, 0.3])
        self._world.trace.note(f"storm {weather}")

    def _heal(self) -> None:
        self._world.trace.note("heal")
        self._world.network.heal()

    def _crash(self) -> None:
        server = self._chance.choice(self._world.servers)
        if server.is_running:
            steps = self._chance.randrange(400)
            self._world.trace.note(f"{server.name} will crash after {steps} steps")
            server.crash_after(steps)


async def start_again(world: World) -> None:
    """Starts servers again that have crashed, a little later. Runs until it is cancelled."""
    chance = random.Random(f"{world.seed} start")
    while True:
        await asyncio.sleep(chance.uniform(0.5, 4))
        for server in world.servers:
            if not server.is_running:
                try:
                    await server.start()
                except ConnectionError:
                    continue
