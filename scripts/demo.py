"""Two homeservers on this machine, TLS between them, and a direct message across them, told line by line.

Run by ``make demo``. Everything is made anew in a temporary folder, certificate authority included, and removed in the
end. Exit status 0 if the story ended well.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the servers and the client are those of the interop tests

from tests.interop.client import MatrixClient, bodies  # noqa: E402
from tests.interop.servers import Authority, OurServer  # noqa: E402

SECONDS_MAX = 60
BEFORE_HE_ANSWERS = ("Hello Bob!", "I hope this reaches you.", "Lunch at noon?")
IN_MID_CONVERSATION = 10


class Story:
    """Tells what happens, with the time since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._is_colourful = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def tell(self, who: str, what: str) -> None:
        """One line."""
        name = f"{who:<8}"
        if self._is_colourful:
            colour = {"alice": 35, "bob": 36}.get(who, 90)
            name = f"\033[1;{colour}m{name}\033[0m"
        print(f"{time.monotonic() - self._began:6.2f} s  {name}  {what}", flush=True)


def main() -> int:
    """See the module."""
    story = Story()
    with tempfile.TemporaryDirectory(prefix="homeserver-demo-") as directory:
        authority = Authority(Path(directory) / "authority")
        story.tell("demo", "made a certificate authority and a certificate for localhost")
        here = OurServer("alices-server", Path(directory), authority)
        there = OurServer("bobs-server", Path(directory), authority)
        try:
            for server, user in ((here, "alice"), (there, "bob")):
                seconds = server.start()
                story.tell("demo", f"{server.server_name} is up after {seconds:.1f} s: the server of {user}")
            asyncio.run(asyncio.wait_for(tell(story, here, there), SECONDS_MAX))
            for server in (here, there):
                server.stop()
            story.tell("demo", "both servers have stopped cleanly")
        except Exception as error:
            print(f"the story went wrong: {type(error).__name__}: {error}", file=sys.stderr)
            for server in (here, there):
                print(f"--- log of {server.server_name} ---\n{server.log_tail()}", file=sys.stderr)
            return 1
        finally:
            here.kill()
            there.kill()
    return 0


async def tell(story: Story, here: OurServer, there: OurServer) -> None:
    """Alice writes to Bob; both servers are killed; nothing is lost."""
    async with MatrixClient(here.base_url) as alice, MatrixClient(there.base_url) as bob:
        await arrive(story, alice, "alice", "Alice")
        await arrive(story, bob, "bob", "Bob")
        room_id = await invite(story, alice, bob)
        await accept(story, alice, bob, room_id)
        await survive(story, here, there, alice, bob, room_id)


async def arrive(story: Story, client: MatrixClient, localpart: str, name: str) -> None:
    """Register and log in."""
    await client.register(localpart)
    await client.set_display_name(name)
    await client.login(client.user_id)
    story.tell(localpart, f"registered as {client.user_id}, and logged in on device {client.device_id}")


async def invite(story: Story, alice: MatrixClient, bob: MatrixClient) -> str:
    """A direct message that waits for an answer."""
    room_id = await alice.create_room(preset="trusted_private_chat", is_direct=True, name="Alice and Bob")
    story.tell("alice", f"created the direct message “Alice and Bob”, {room_id}")
    await alice.invite(room_id, bob.user_id)
    story.tell("alice", f"invited {bob.user_id}")
    for text in BEFORE_HE_ANSWERS:
        await alice.send(room_id, text)
        story.tell("alice", f"sent “{text}”")
    await alice.until(lambda: alice.room(room_id).member(bob.user_id) == "invite")
    story.tell("alice", "sees the invitation as pending")
    return room_id


async def accept(story: Story, alice: MatrixClient, bob: MatrixClient, room_id: str) -> None:
    """Bob finds the invitation, joins, reads and answers."""
    await bob.until(lambda: bob.room(room_id).membership == "invite")
    shown = bob.room(room_id).invite_state
    room_name = shown["m.room.name", ""]["content"]["name"]
    inviter = shown["m.room.member", bob.user_id]["sender"]
    story.tell("bob", f"sees an invitation from {inviter} to “{room_name}”")
    await bob.join(room_id)
    await bob.until(lambda: bob.room(room_id).membership == "join")
    story.tell("bob", "accepted it: joined through the server of alice")
    read = (await bob.message_bodies(room_id))[-len(BEFORE_HE_ANSWERS) :]
    if read != list(BEFORE_HE_ANSWERS):
        raise RuntimeError(f"bob reads {read}")
    for text in read:
        story.tell("bob", f"reads “{text}”, sent before he joined")
    waiting = asyncio.create_task(alice.until(lambda: "Noon it is." in alice.bodies(room_id)))
    await bob.send(room_id, "Noon it is.")
    story.tell("bob", "answered “Noon it is.”")
    await waiting
    story.tell("alice", "gets the answer in the /sync that was waiting for it")


async def survive(
    story: Story, here: OurServer, there: OurServer, alice: MatrixClient, bob: MatrixClient, room_id: str
) -> None:
    """Both servers are killed in mid-conversation; what they had said yes to is there afterwards."""
    accepted = [f"{client.user_id} {n}" for n in range(IN_MID_CONVERSATION) for client in (alice, bob)]
    await asyncio.gather(
        *(alice.send(room_id, text) for text in accepted[::2]), *(bob.send(room_id, text) for text in accepted[1::2])
    )
    here.kill()
    there.kill()
    story.tell("demo", f"killed both servers (SIGKILL) when {len(accepted)} more messages had been accepted")
    for server in (here, there):
        story.tell("demo", f"{server.server_name} is back after {server.start():.1f} s")
    await alice.send(room_id, "Still there?")
    await bob.until(lambda: "Still there?" in bob.bodies(room_id))
    story.tell("bob", "reads “Still there?”")
    for client, name in ((alice, "alice"), (bob, "bob")):
        while missing := set(accepted).difference(bodies(await client.history(room_id))):
            await client.sync(timeout_ms=1_000)
        story.tell(name, f"has all {len(accepted)} messages, {len(missing)} are missing")


if __name__ == "__main__":
    sys.exit(main())
