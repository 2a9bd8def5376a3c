"""Answers of other servers that are too large, too many or not what they should be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.abuse.attack import attack
from tests.abuse.remote import Refusal, RemoteServer
from tests.abuse.stage import MIB, Stage
from tests.factories.rooms import RoomFactory

PIECE = b"{}," * 87_381  # 256 KiB


def objects(size: int) -> Iterable[bytes]:
    """Empty objects with commas, about so many bytes of them."""
    for _ in range(size // len(PIECE)):
        yield PIECE
    yield b"{}"


def shared_room(stage: Stage, mallory: RemoteServer) -> RoomFactory:
    """A room of the remote server that one of our users is in."""
    room = mallory.room()
    mallory.let_join(stage.user(), room)
    return room


def _event_auth(stage: Stage, size: int) -> Iterator[None]:
    mallory = stage.remote()
    room = shared_room(stage, mallory)
    last, chain = room.extremities, [*room.events][:3]
    hidden = room.state_event("creator", "m.room.topic", {"topic": "never shown"}, prev_events=last)
    event = room.send("creator", prev_events=last, auth_events=[*chain, hidden])
    mallory.on("GET", "/event/", Refusal())
    mallory.on("GET", "/event_auth/", lambda _: [b'{"auth_chain":[', *objects(size), b"]}"])
    yield
    mallory.send(stage.server, event)


@attack()
def event_auth_of_17_mib(stage: Stage) -> Iterator[None]:
    """One event cites an unknown auth event, and the auth chain is 17 MiB of empty objects."""
    yield from _event_auth(stage, 17 * MIB)


@attack()
def event_auth_of_250_mib(stage: Stage) -> Iterator[None]:
    """The same with 250 MiB, the most that 1b79cda takes."""
    yield from _event_auth(stage, 250 * MIB)
