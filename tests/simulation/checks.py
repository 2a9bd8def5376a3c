"""What must hold once the network is whole again and everything has come to rest.

To add a check: write a function that takes a ``Findings`` and returns what is wrong, and add it to ``CHECKS``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, func, select

from homeserver.protocol.events import Event, StateKey
from homeserver.storage import event_graph
from homeserver.storage.database import Database
from homeserver.storage.event_graph import StoredEvent, Verdict
from homeserver.storage.tables import outbound_pdus, outbound_requests, rooms
from tests.simulation.clients import Device
from tests.simulation.malice import MALLORY
from tests.simulation.oracle import Oracle, State
from tests.simulation.servers import Server
from tests.simulation.world import World


@dataclass(slots=True)
class History:
    """What a device that is new can read of a room."""

    events: list[str]
    forwards: list[str]


@dataclass(slots=True)
class Findings:
    """What was found of a world at rest: read once, for all checks."""

    world: World
    graphs: dict[tuple[str, str], dict[str, StoredEvent]] = field(default_factory=dict)
    """By server and room."""
    extremities: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    states: dict[tuple[str, str], State] = field(default_factory=dict)
    """The current state by server and room, for servers that are in the room."""
    oracles: dict[str, Oracle] = field(default_factory=dict)
    fresh: dict[str, Device] = field(default_factory=dict)
    """By user, a device that syncs for the first time."""
    histories: dict[tuple[str, str], History] = field(default_factory=dict)
    """By user and room."""
    filled: dict[tuple[str, str, str], set[str]] = field(default_factory=dict)
    """By user, device and room: what a device knows that has scrolled back through its gaps."""
    log: list[str] = field(default_factory=list)

    def residents(self, room_id: str) -> list[Server]:
        """The servers that have somebody in the room."""
        return [server for server in self.world.servers if (server.name, room_id) in self.states]

    def members(self, room_id: str) -> list[str]:
        """The users that are joined, as all servers say."""
        return [
            user_id
            for server in self.residents(room_id)
            for user_id in server.users
            if self.membership(server, room_id, user_id) == "join"
        ]

    def membership(self, server: Server, room_id: str, user_id: str) -> str | None:
        event_id = self.states[server.name, room_id].get(("m.room.member", user_id))
        if event_id is None:
            return None
        return str(original(self.graphs[server.name, room_id][event_id]).content["membership"])


def original(stored: StoredEvent) -> Event:
    """An event as it was signed, whatever has been redacted since."""
    return stored.original


async def find(world: World, log: list[str]) -> Findings:
    """Read everything. Devices scroll back first, which has servers fetch what they lack."""
    found = Findings(world, log=log)
    for user_id, devices in world.devices.items():
        fresh = found.fresh[user_id] = world.fresh_device(user_id)
        await fresh.sync()
        for room_id in sorted(fresh.rooms):
            gap = fresh.rooms[room_id].gaps[0]
            timeline = list(fresh.rooms[room_id].events)
            backwards = [*reversed(timeline), *_ids(await fresh.pages(room_id, gap))]
            forwards = _ids(await fresh.pages(room_id, None, "f"))
            found.histories[user_id, room_id] = History(backwards, forwards)
        for device in devices:
            await device.sync()
            await device.sync()
            for room_id in sorted(device.rooms.keys() & fresh.rooms.keys()):
                found.filled[user_id, device.name, room_id] = await device.fill_gaps(room_id)
    for room_id in world.rooms:
        for server in world.servers:
            found.graphs[server.name, room_id] = server.graph(room_id)
            found.extremities[server.name, room_id] = extremities_of(server, room_id)
            if any(room_id in found.fresh[user_id].rooms for user_id in server.users):
                found.states[server.name, room_id] = await _state_of(world, server, room_id)
        known = {
            event_id: original(stored)
            for server in world.servers
            for event_id, stored in found.graphs[server.name, room_id].items()
        }
        found.oracles[room_id] = Oracle(known.values())
    return found


def _ids(events: list[dict[str, object]]) -> list[str]:
    return [str(event["event_id"]) for event in events]


def extremities_of(server: Server, room_id: str) -> set[str]:
    """The ends of a room: its forward extremities without the late ones, which others follow."""

    def read(connection: Connection) -> set[str]:
        room_nid = connection.execute(select(rooms.c.room_nid).where(rooms.c.room_id == room_id)).scalar()
        found = event_graph.forward_extremities_of(connection, [room_nid]) if room_nid is not None else {}
        return {row.event_id for rows in found.values() for row in rows if not row.is_late}

    return server.get(Database).read_now(read)


async def _state_of(world: World, server: Server, room_id: str) -> State:
    user_id = next(user for user in server.users if room_id in world.device(user).rooms)
    events: list[dict[str, str]] = await world.device(user_id).ask("GET", f"/rooms/{room_id}/state")  # type: ignore[assignment]
    return {(event["type"], event["state_key"]): event["event_id"] for event in events}


def known(oracle: Oracle) -> Iterable[Event]:
    """All events of a room whose ancestors are known."""
    return oracle.events.values()


def owed_by(server: Server) -> int:
    """How many events and requests a server has written down for others."""
    return sum(server.query(select(func.count()).select_from(t))[0][0] for t in (outbound_pdus, outbound_requests))


# -- the checks --------------------------------------------------------------------------------------------------------


def servers_agree_on_extremities(found: Findings) -> Iterator[str]:
    """The ends of a room are the same events everywhere."""
    for room_id in found.world.rooms:
        ends = {server.name: found.extremities[server.name, room_id] for server in found.residents(room_id)}
        if len({frozenset(end) for end in ends.values()}) > 1:
            yield f"{room_id}: {ends}"


def extremities_rest_on_known_history(found: Findings) -> Iterator[str]:
    """Nothing that builds on events that nobody knows has become an end of a room."""
    for room_id in found.world.rooms:
        for server in found.residents(room_id):
            oracle = found.oracles[room_id]
            for event_id in sorted(found.extremities[server.name, room_id] - oracle.events.keys()):
                unknown = sorted(_unknown_before(found, server, room_id, event_id))
                yield f"{room_id} at {server.name}: {event_id} builds on {unknown}"


def _unknown_before(found: Findings, server: Server, room_id: str, event_id: str) -> Iterator[str]:
    """The events before this one that no honest server has, each with the one that names it."""
    union = {name: original(e) for s in found.world.servers for name, e in found.graphs[s.name, room_id].items()}
    todo, seen = [event_id], {event_id}
    while todo:
        event = union[todo.pop()]
        for prev in event.prev_events:
            if prev not in union:
                yield f"{prev} before {event.event_id} of {event.sender} ({event.type})"
            elif prev not in seen:
                seen.add(prev)
                todo.append(prev)


def state_is_what_the_specification_says(found: Findings) -> Iterator[str]:
    """The current state follows from the ends of the room, by a slow and literal reading of the specification."""
    for room_id in found.world.rooms:
        oracle = found.oracles[room_id]
        for server in found.residents(room_id):
            ends, state = found.extremities[server.name, room_id], found.states[server.name, room_id]
            if not ends <= oracle.events.keys():
                continue  # see the check before
            expected = oracle.state(ends)
            for key in sorted(expected.keys() | state.keys()):
                if expected.get(key) != state.get(key):
                    yield f"{room_id} at {server.name}: {key} is {state.get(key)}, not {expected.get(key)}"


def servers_accept_the_same_events(found: Findings) -> Iterator[str]:
    """All that the ends of a room build on is at every server in the room, and was rejected where it should be.

    What no server in the room has, because those that had it have left, cannot be had. Nor can what all who have it
    have rejected: they do not give it to others, and the server that sent it, Mallory's, need not.
    """
    for room_id in found.world.rooms:
        oracle = found.oracles[room_id]
        residents = found.residents(room_id)
        held = {
            event_id
            for server in residents
            for event_id, stored in found.graphs[server.name, room_id].items()
            if not stored.verdict & Verdict.OUTLIER
        }
        for server in residents:
            graph = found.graphs[server.name, room_id]
            for event_id in sorted(oracle.ancestors(found.extremities[server.name, room_id]) & held):
                stored = graph.get(event_id)
                if stored is None or stored.verdict & Verdict.OUTLIER:
                    if event_id not in oracle.rejected:
                        yield f"{room_id} at {server.name}: {_name(oracle, event_id)} is missing"
                elif not _is_mallorys(oracle.events[event_id]) and (wrong := _misjudged(oracle, stored)):
                    yield f"{room_id} at {server.name}: {wrong}"


def servers_judge_mallory_alike(found: Findings) -> Iterator[str]:
    """What the malicious server sent was rejected where it should be, by every server."""
    for room_id in found.world.rooms:
        oracle = found.oracles[room_id]
        for server in found.residents(room_id):
            for stored in found.graphs[server.name, room_id].values():
                is_placed = stored.event_id in oracle.events and not stored.verdict & Verdict.OUTLIER
                if is_placed and _is_mallorys(stored.event) and (wrong := _misjudged(oracle, stored)):
                    yield f"{room_id} at {server.name}: {wrong}"


def _is_mallorys(event: Event) -> bool:
    return event.sender_domain == MALLORY.partition(":")[2]


def _misjudged(oracle: Oracle, stored: StoredEvent) -> str | None:
    if bool(stored.verdict & Verdict.REJECTED) == (stored.event_id in oracle.rejected):
        return None
    reason = oracle.rejected.get(stored.event_id, "allowed")
    return f"{_name(oracle, stored.event_id)} is {stored.verdict!r}, but {reason}"


def promises_are_kept(found: Findings) -> Iterator[str]:
    """What a server has acknowledged is at every server that is in the room, and shown unless it is soft-failed."""
    for promise in found.world.promises:
        room_id, event_id = promise.room_id, promise.event_id
        home = found.world.server_of(promise.user_id)
        if event_id not in found.graphs[home.name, room_id]:
            yield f"{room_id} at {home.name}: {event_id} was acknowledged and is not there"
        if home not in found.residents(room_id):
            continue  # what it sends counts no longer
        for server in found.residents(room_id):
            stored = found.graphs[server.name, room_id].get(event_id)
            if stored is None:
                yield f"{room_id} at {server.name}: {event_id} of {promise.user_id} has not come"
            elif stored.is_for_clients:
                for user_id in server.users:
                    history = found.histories.get((user_id, room_id))
                    if history and _steady(found, server, room_id, {event_id} - set(history.events)):
                        yield f"{room_id}: {user_id} cannot see {event_id} of {promise.user_id}"


def _steady(found: Findings, server: Server, room_id: str, event_ids: set[str]) -> set[str]:
    """The events without those redactions that a server may have hidden when somebody looked.

    Since room version 3 a redaction is hidden until its target is there. So one whose target came later, or with
    fetched history, which may have been later, can turn up in a part of the history that somebody has already read.
    He gets the target redacted. All other redactions are to be seen like any event.
    """
    graph = found.graphs[server.name, room_id]
    return {event_id for event_id in event_ids if event_id not in graph or not _was_hidden(graph, graph[event_id])}


def _was_hidden(graph: Mapping[str, StoredEvent], stored: StoredEvent) -> bool:
    event = original(stored)
    if event.type != "m.room.redaction" or event.version.redaction_rule:
        return False
    target = graph.get(event.redacts or "")
    if target is None or target.stream_position is None or stored.stream_position is None:
        return True
    return target.stream_position < 0 or target.stream_position > stored.stream_position > 0


def nobody_is_lost(found: Findings) -> Iterator[str]:
    """Whoever has joined is in the room, unless some event has something against it."""
    for room_id in found.world.rooms:
        oracle = found.oracles[room_id]
        is_shut = any(
            e.type == "m.room.join_rules" and e.content != {"join_rule": "public"} for e in oracle.events.values()
        )
        for user_id in found.world.users:
            members = [e for e in known(oracle) if e.type == "m.room.member" and e.state_key == user_id]
            joins = [e for e in members if e.content["membership"] == "join" and e.event_id not in oracle.rejected]
            is_removed = any(e.content["membership"] in ("leave", "ban") for e in members)
            if joins and not is_removed and not is_shut and user_id not in found.members(room_id):
                names = [_name(oracle, e.event_id) for e in members]
                yield f"{room_id}: {user_id} has joined, was never removed, and is not in the room: {names}"


def strangers_learn_nothing(found: Findings) -> Iterator[str]:
    """The malicious server was given no event of a room that none of its users was ever in or invited to."""
    mallory = found.world.mallory
    for room_id, learned in sorted(mallory.learned.items()) if mallory is not None else ():
        if room_id not in found.oracles or room_id in mallory.rooms:
            continue
        members = [event for event in known(found.oracles[room_id]) if event.type == "m.room.member"]
        if not any(event.state_key == MALLORY for event in members):
            yield f"{room_id}: {sorted(learned)}"


def outsiders_know_nothing(found: Findings) -> Iterator[str]:
    """A server that nobody of a room has to do with holds nothing of it."""
    for room_id in found.world.rooms:
        oracle = found.oracles[room_id]
        for server in found.world.servers:
            concerned = any(
                e.type == "m.room.member" and (e.state_key or "").endswith(f":{server.name}") for e in known(oracle)
            )
            known_here = found.graphs[server.name, room_id].values()
            if not concerned and not all(_is_made_up(stored, server) for stored in known_here):
                yield f"{room_id}: {server.name} knows of it"


def _is_made_up(stored: StoredEvent, server: Server) -> bool:
    """Whether an event, stored beside the graph, is an invitation that Mallory made up, or a user's refusal of it."""
    event = original(stored)
    is_for_its_user = event.type == "m.room.member" and event.state_key in server.users
    return stored.is_out_of_band and is_for_its_user and (_is_mallorys(event) or event.sender == event.state_key)


def devices_know_the_state(found: Findings) -> Iterator[str]:
    """A device that has synced all along knows what one knows that syncs for the first time: what is true."""
    for user_id, devices in found.world.devices.items():
        fresh = found.fresh[user_id]
        server = found.world.server_of(user_id)
        for room_id, view in sorted(fresh.rooms.items()):
            if wrong := _differing(view.state, found.states[server.name, room_id]):
                yield f"{room_id}: a new device of {user_id} knows another state than its server: {wrong}"
        for device in devices:
            if device.rooms.keys() != fresh.rooms.keys():
                yield f"{user_id} {device.name} is in {sorted(device.rooms)}, a new device in {sorted(fresh.rooms)}"
            # The device that acts forgets an invitation once it has tried to answer it.
            forgotten = fresh.invited - device.invited if device.name == "ACTS" else set()
            if device.invited != fresh.invited - forgotten:
                yield f"{user_id} {device.name} is invited to {device.invited}, a new device to {fresh.invited}"
            for room_id in sorted(device.rooms.keys() & fresh.rooms.keys()):
                mine, new = device.rooms[room_id].state, fresh.rooms[room_id].state
                # An answer of /sync replaces entries of the state, and cannot take one out. So where state resolution
                # has dropped an entry altogether, and only there, a device may keep it, if it was ever true.
                dropped = {key for key in mine if key not in new and _was_accepted(found, server, room_id, mine[key])}
                if wrong := _differing({key: mine[key] for key in mine.keys() - dropped}, new):
                    yield f"{room_id}: {user_id} {device.name} has another state than a new device: {wrong}"


def _differing(one: State, other: State) -> dict[StateKey, tuple[str | None, str | None]]:
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return {key: (one.get(key), other.get(key)) for key in keys}


def _was_accepted(found: Findings, server: Server, room_id: str, event_id: str) -> bool:
    stored = found.graphs[server.name, room_id].get(event_id)
    return stored is not None and not stored.verdict & Verdict.REJECTED


def pages_show_each_event_once(found: Findings) -> Iterator[str]:
    """A first sync and the pages before it show no event twice, and the pages forwards show the same."""
    for (user_id, room_id), history in found.histories.items():
        for direction, events in (("back", history.events), ("forwards", history.forwards)):
            if twice := [event_id for event_id, count in Counter(events).items() if count > 1]:
                yield f"{room_id}: {user_id} paging {direction} sees {twice} twice"
        oracle = found.oracles[room_id]
        server = found.world.server_of(user_id)
        if missing := _steady(found, server, room_id, set(history.events) ^ set(history.forwards)):
            yield f"{room_id}: {user_id} sees only one way {[_name(oracle, event_id) for event_id in sorted(missing)]}"


def members_see_the_same_history(found: Findings) -> Iterator[str]:
    """In a room whose history is shared everybody sees every event that the own server does not hide."""
    for room_id in found.world.rooms:
        oracle = found.oracles[room_id]
        wanted = oracle.ancestors(
            {end for server in found.residents(room_id) for end in found.extremities[server.name, room_id]}
        )
        for server in found.residents(room_id):
            graph = found.graphs[server.name, room_id]
            expected = {
                event_id for event_id in wanted if event_id not in graph or graph[event_id].is_for_clients
            } - oracle.rejected.keys()
            for user_id in server.users:
                history = found.histories.get((user_id, room_id))
                if history is not None and (missing := _steady(found, server, room_id, expected - set(history.events))):
                    yield f"{room_id}: {user_id} cannot see {[_name(oracle, e) for e in sorted(missing)]}"


def devices_can_know_the_history(found: Findings) -> Iterator[str]:
    """A device that scrolls back through the gaps in its timeline knows every event that a new device sees."""
    for (user_id, device, room_id), known in found.filled.items():
        seen = set(found.histories[user_id, room_id].events)
        oracle = found.oracles[room_id]
        if missing := _steady(found, found.world.server_of(user_id), room_id, seen - known):
            yield f"{room_id}: {user_id} {device} misses {[_name(oracle, event_id) for event_id in sorted(missing)]}"


def invitations_can_be_accepted_at_once(found: Findings) -> Iterator[str]:
    """Who accepts an invitation that nobody has taken back is not refused."""
    for refused in found.world.refused_acceptances:
        events = found.oracles[refused.room_id].events.values()
        members = [e for e in events if e.type == "m.room.member"]
        inviters = {e.sender for e in members if e.state_key == refused.user_id and e.content["membership"] == "invite"}
        against = [
            e
            for e in members
            if e.content["membership"] in ("leave", "ban") and e.state_key in {refused.user_id, *inviters}
        ]
        if not against:
            yield f"{refused.room_id}: {refused.user_id} was refused: {refused.reason}"


def queues_are_empty(found: Findings) -> Iterator[str]:
    """Nothing is left to send, and no request is owed."""
    for server in found.world.servers:
        if count := owed_by(server):
            requests = server.query(select(outbound_requests.c.kind, outbound_requests.c.user_id))
            yield f"{server.name} owes others {count} events and requests, among them {requests}"


def nothing_unexpected_happened(found: Findings) -> Iterator[str]:
    """No internal errors, neither logged nor answered."""
    yield from found.log
    for devices in found.world.devices.values():
        for device in devices:
            yield from device.errors


def _name(oracle: Oracle, event_id: str) -> str:
    event = oracle.events.get(event_id)
    if event is None:
        return event_id
    what = event.content.get("membership") or event.content.get("body") or ""
    return f"{event_id} ({event.sender} {event.type} {event.state_key or ''} {what})"


Check = Callable[[Findings], Iterator[str]]

CHECKS: tuple[Check, ...] = (
    servers_agree_on_extremities,
    extremities_rest_on_known_history,
    state_is_what_the_specification_says,
    servers_accept_the_same_events,
    servers_judge_mallory_alike,
    promises_are_kept,
    nobody_is_lost,
    outsiders_know_nothing,
    strangers_learn_nothing,
    devices_know_the_state,
    pages_show_each_event_once,
    members_see_the_same_history,
    devices_can_know_the_history,
    invitations_can_be_accepted_at_once,
    queues_are_empty,
    nothing_unexpected_happened,
)
KNOWN_FAULTS = frozenset[str]()
"""Checks that find faults which are known and not mended yet: they fail no test. To be empty."""
