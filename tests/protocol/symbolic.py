"""Events with symbolic IDs, without hashes and signatures: for rules that look at content and graph alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from homeserver.errors import NotAuthorized
from homeserver.protocol.authorization import auth_event_keys, authorize
from homeserver.protocol.events import Event, StateKey
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion

ALICE = "@alice:a.example"
BOB = "@bob:b.example"
CAROL = "@carol:c.example"
DAVE = "@dave:a.example"

VERSIONS = list(ROOM_VERSIONS.values())


def versions(first: int, last: int = 12) -> list[RoomVersion]:
    return [ROOM_VERSIONS[str(number)] for number in range(first, last + 1)]


def room_id_of(version: RoomVersion) -> str:
    return "!create" if version.room_id_is_create_hash else "!room:a.example"


def references(version: RoomVersion, event_ids: Iterable[str]) -> list[Any]:
    if version.references_with_hashes:
        return [[event_id, {"sha256": ""}] for event_id in event_ids]
    return list(event_ids)


def event(
    version: RoomVersion,
    event_type: str,
    sender: str,
    content: Mapping[str, Any] | None = None,
    *,
    state_key: str | None = None,
    event_id: str = "$event:a.example",
    prev: Iterable[str] = ("$previous:a.example",),
    auth: Iterable[str] = (),
    ts: int = 1_000,
    depth: int = 10,
    room_id: str | None = None,
    **more: Any,
) -> Event:
    room_id = room_id or room_id_of(version)
    pdu = {
        "type": event_type,
        "sender": sender,
        "content": dict(content or {}),
        "prev_events": references(version, prev),
        "auth_events": references(version, auth),
        "origin_server_ts": ts,
        "depth": depth,
        **more,
    }
    if state_key is not None:
        pdu["state_key"] = state_key
    if not (version.room_id_is_create_hash and event_type == "m.room.create"):
        pdu["room_id"] = room_id
    return Event(pdu, version, event_id, room_id)


def create_event(version: RoomVersion, creator: str = ALICE, **content: Any) -> Event:
    if not version.creator_is_sender:
        content = {"creator": creator, **content}
    content = {"room_version": version.identifier, **content}
    return event(version, "m.room.create", creator, content, state_key="", event_id="$create", prev=(), depth=1)


def member(version: RoomVersion, user_id: str, membership: str, sender: str | None = None, **more: Any) -> Event:
    content = {"membership": membership, **more.pop("content", {})}
    more.setdefault("event_id", f"${membership}-{user_id}")
    return event(version, "m.room.member", sender or user_id, content, state_key=user_id, **more)


def state_of(*events: Event) -> dict[StateKey, Event]:
    return {one.key: one for one in events}


def room(
    version: RoomVersion,
    members: Mapping[str, str] | None = None,
    *,
    power_levels: Mapping[str, Any] | None = None,
    join_rule: str | None = None,
    create: Mapping[str, Any] | None = None,
    extra: Iterable[Event] = (),
) -> dict[StateKey, Event]:
    """The state of a room that Alice created."""
    events = [create_event(version, **(create or {}))]
    events += [member(version, user_id, membership) for user_id, membership in (members or {ALICE: "join"}).items()]
    if power_levels is not None:
        events.append(
            event(version, "m.room.power_levels", ALICE, power_levels, state_key="", event_id="$power_levels")
        )
    if join_rule is not None:
        content = {"join_rule": join_rule}
        events.append(event(version, "m.room.join_rules", ALICE, content, state_key="", event_id="$join_rules"))
    return state_of(*events, *extra)


def refusal(judged: Event, state: Mapping[StateKey, Event]) -> str | None:
    """Why an event is refused, or ``None`` if it is allowed, judging by no more than it must cite."""
    keys = auth_event_keys(judged.type, judged.sender, judged.state_key, judged.content, judged.version)
    cited = {key: state[key] for key in keys if key in state}
    try:
        authorize(judged, cited, create=state.get(("m.room.create", "")))
    except NotAuthorized as error:
        return str(error)
    return None
