"""Answers of other servers that are too large, too many or not what they should be."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from homeserver.protocol.compose import compose_event
from homeserver.protocol.events import Event, EventDraft
from tests.abuse.attack import attack
from tests.abuse.http import User
from tests.abuse.remote import Refusal, RemoteServer, join_template
from tests.abuse.stage import MIB, Stage
from tests.factories.rooms import RoomFactory, server_key

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


# -- event_auth --------------------------------------------------------------------------------------------------------


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


@attack(quick=True)
def event_auth_of_17_mib(stage: Stage) -> Iterator[None]:
    """One event cites an unknown auth event, and the auth chain is 17 MiB of empty objects."""
    yield from _event_auth(stage, 17 * MIB)


@attack()
def event_auth_of_250_mib(stage: Stage) -> Iterator[None]:
    """The same with 250 MiB, the most that 1b79cda takes."""
    yield from _event_auth(stage, 250 * MIB)


@attack()
def event_auth_of_nested_lists(stage: Stage) -> Iterator[None]:
    """The same with 17 MiB in which lists are nested 400 deep, again and again."""
    mallory = stage.remote()
    room = shared_room(stage, mallory)
    last, chain = room.extremities, [*room.events][:3]
    hidden = room.state_event("creator", "m.room.topic", {"topic": "never shown"}, prev_events=last)
    event = room.send("creator", prev_events=last, auth_events=[*chain, hidden])
    element = b'{"content":' + b"[" * 400 + b"]" * 400 + b"}"
    mallory.on("GET", "/event/", Refusal())
    mallory.on("GET", "/event_auth/", b'{"auth_chain":[' + b",".join([element] * (17 * MIB // len(element))) + b"]}")
    yield
    mallory.send(stage.server, event)


# -- the state before an event -----------------------------------------------------------------------------------------


def _message_after(room: RoomFactory, event_id: str) -> Event:
    """A message that follows an event which may not exist."""
    sender, state = room.user("creator"), room.current_state
    keys = (("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", sender))
    return compose_event(
        EventDraft("m.room.message", sender, {"body": "follows what nobody has"}),
        room.version,
        room_id=room.room_id,
        prev_events=[(event_id, "")],
        auth_events=[(state[key], "") for key in keys],
        depth=20,
        origin_server_ts=1_790_000_000_000,
        signer=server_key(room.server_name),
    )


def _has_unknown_ancestors(mallory: RemoteServer, room: RoomFactory) -> Event:
    """An event that follows one whose own ancestors nobody shows, so that the state before it is asked for."""
    hidden = _message_after(room, "$" + "-" * 43)
    mallory.on("POST", "/get_missing_events/", {"events": []})
    mallory.on("GET", "/event/", {"origin": "a", "origin_server_ts": 1, "pdus": [hidden.pdu]})
    return _message_after(room, hidden.event_id)


@attack(quick=True)
def state_ids_of_57_mib(stage: Stage) -> Iterator[None]:
    """An event's ancestors are unknown, and the state before it is a list of 57 MiB of event IDs."""
    mallory = stage.remote()
    room = shared_room(stage, mallory)
    event = _has_unknown_ancestors(mallory, room)
    event_ids = b",".join(b'"$%043d"' % number for number in range(57 * MIB // 47))
    body = b'{"pdu_ids":[' + event_ids + b'],"auth_chain_ids":[]}'
    mallory.on("GET", "/state_ids/", body)
    yield
    mallory.send(stage.server, event)


@attack(databases=("sqlite", "postgresql"))
def state_ids_of_as_many_as_are_taken(stage: Stage) -> Iterator[None]:
    """The same with 250,000 event IDs, none of which exists; the state with the events is empty objects."""
    mallory = stage.remote()
    room = shared_room(stage, mallory)
    event = _has_unknown_ancestors(mallory, room)
    body = b'{"pdu_ids":[' + b",".join(b'"$%043d"' % number for number in range(250_000)) + b'],"auth_chain_ids":[]}'
    mallory.on("GET", "/state_ids/", body)
    mallory.on("GET", "/state/", lambda _: [b'{"auth_chain":[],"pdus":[', *objects(200 * MIB), b"]}"])
    yield
    mallory.send(stage.server, event)


# -- missing events ----------------------------------------------------------------------------------------------------


@attack(quick=True)
def missing_events_of_16_mib(stage: Stage) -> Iterator[None]:
    """An event's ancestors are unknown, and get_missing_events answers with 15 MiB of empty objects."""
    mallory = stage.remote()
    room = shared_room(stage, mallory)
    event = _has_unknown_ancestors(mallory, room)
    mallory.on("POST", "/get_missing_events/", lambda _: [b'{"events":[', *objects(15 * MIB), b"]}"])
    yield
    mallory.send(stage.server, event)


@attack()
def missing_events_full_of_lists(stage: Stage) -> Iterator[None]:
    """The same with 50 valid events of 60 KiB, whose content is 20,000 empty lists each."""
    mallory = stage.remote()
    room = shared_room(stage, mallory)
    large = [room.send("creator", content={"lists": [[] for _ in range(20_000)]}) for _ in range(50)]
    event = room.send("creator")
    mallory.on("POST", "/get_missing_events/", {"events": [each.pdu for each in large]})
    yield
    mallory.send(stage.server, event)


# -- joins -------------------------------------------------------------------------------------------------------------


JOIN_SECONDS_MAX = 600.0
"""A large room may take long, as long as nobody else notices."""


def _join(user: User, mallory: RemoteServer, room: RoomFactory) -> int:
    return user.call("POST", f"/join/{room.room_id}?via={mallory.server_name}", {}).status


@attack(quick=True)
def join_of_500_000_objects(stage: Stage) -> Iterator[None]:
    """A user joins a room whose state is 500,000 empty objects."""
    mallory = stage.remote()
    room = mallory.room()
    user = stage.user()
    mallory.on("PUT", "/send_join/", lambda _: [b'{"auth_chain":[],"state":[', *objects(500_000 * 3), b"]}"])
    yield
    assert _join(user, mallory, room) != 200


@attack()
def join_of_200_000_objects_that_look_like_events(stage: Stage) -> Iterator[None]:
    """A user joins a room whose state is 200,000 objects that lack a signature, 100 MiB."""
    mallory = stage.remote()
    room = mallory.room()
    user = stage.user()
    event = b'{"type":"m.room.member","room_id":"!a:b","sender":"@a:b","content":{"text":"%b"}}' % (b"a" * 400)
    piece = b",".join([event] * 1_000)
    lists = [b'{"auth_chain":[],"state":[', *itertools.chain.from_iterable([[piece, b","]] * 199), piece, b"]}"]
    mallory.on("PUT", "/send_join/", lambda _: lists)
    yield
    assert _join(user, mallory, room) != 200


def large_room(mallory: RemoteServer, members: int) -> tuple[RoomFactory, list[bytes]]:
    """A room with so many members and valid signatures, and the pieces of the answer to a join."""
    room = mallory.room()
    state = [event.json for event in room.state.values()]
    chain = [event.json for event in room.auth_chain(room.state.values())]
    last = room.extremities
    for number in range(members):
        join = room.join(f"member{number}", content={"displayname": f"Member number {number}"}, prev_events=last)
        state.append(join.json)
        for known in (room.events, room._state_before, room._state_after):
            del known[join.event_id]
        room.extremities = last
    pieces = [b",".join(state[start : start + 1_000]) for start in range(0, len(state), 1_000)]
    head = b'{"origin":"a","auth_chain":[%b],"state":[' % b",".join(chain)
    return room, [head, *(piece + b"," for piece in pieces[:-1]), pieces[-1], b"]}"]


def _join_large(stage: Stage, members: int) -> Iterator[None]:
    mallory = stage.remote()
    room, answer = large_room(mallory, members)
    template = {"room_version": room.version.identifier, "event": join_template(room, f"@user:{mallory.server_name}")}
    user = stage.user().another(JOIN_SECONDS_MAX)
    template["event"] |= {"sender": user.user_id, "state_key": user.user_id}
    mallory.on("GET", "/make_join/", template)
    mallory.on("PUT", "/send_join/", lambda _: answer)
    yield
    assert _join(user, mallory, room) == 200


@attack(rows_max=1_000_000)
def join_of_20_000_members(stage: Stage) -> Iterator[None]:
    """A user joins a room with 20,000 members, whose events are all valid."""
    yield from _join_large(stage, 20_000)


@attack(rows_max=1_000_000, databases=("sqlite", "postgresql"))
def join_of_100_000_members(stage: Stage) -> Iterator[None]:
    """A user joins a room with 100,000 members, whose events are all valid."""
    yield from _join_large(stage, 100_000)
