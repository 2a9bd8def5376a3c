"""What is measured. Each path takes the bench and returns its figures; its docstring says what it does."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from benchmarks.fake_remote import FakeRemote
from benchmarks.governance import governance
from benchmarks.http import Answer
from benchmarks.matrix import Site, User, gather_some
from benchmarks.measuring import Figure, Meter, latencies, repeat, resident_mib
from benchmarks.servers import Bench

CLIENTS = 16
WAITING_SYNCS = 100
FANOUT_MESSAGES = 20
FANOUT_INTERVAL_SECONDS = 0.25
SYNC_ROOMS = 100
SYNC_ROOM_MESSAGES = 20
SYNCS_AT_ONCE = 8
HISTORY_MESSAGES = 1_000
PAGE = 100
FEDERATED_MESSAGES = 200
FEDERATED_AT_ONCE = 4
LARGE_ROOM_MEMBERS = 1_000
ROOM_CREATORS = 4
EVENTS_OF_A_NEW_ROOM = 7

Path = Callable[[Bench], Awaitable[list[Figure]]]


async def send_one_room(bench: Bench) -> list[Figure]:
    """16 clients, one room, one message after the other."""
    users = await bench.site.users(CLIENTS)
    room_id = await bench.site.shared_room(users)
    return await _send(bench, [(user, room_id) for user in users])


async def send_many_rooms(bench: Bench) -> list[Figure]:
    """16 clients, each in a room of its own."""
    users = await bench.site.users(CLIENTS)
    return await _send(bench, [(user, await user.create_room(preset="private_chat")) for user in users])


async def _send(bench: Bench, places: list[tuple[User, str]]) -> list[Figure]:
    def sender(user: User, room_id: str) -> Callable[[], Awaitable[Answer]]:
        return lambda: user.send(room_id, "a message of the usual length, more or less")

    took, meter = await repeat([sender(user, room_id) for user, room_id in places], bench.seconds, bench.pids)
    bench.events += len(took)
    rate = Figure("events per second", len(took) / meter.wall_seconds, "/s")
    return [rate, *latencies(took), *meter.cpu_per(len(took), "event")]


async def create_room(bench: Bench) -> list[Figure]:
    """4 clients create private rooms."""
    users = await bench.site.users(ROOM_CREATORS)

    def creator(user: User) -> Callable[[], Awaitable[Answer]]:
        return lambda: user.call("POST", "/v3/createRoom", {"preset": "private_chat"})

    took, meter = await repeat([creator(user) for user in users], bench.seconds, bench.pids)
    bench.events += len(took) * EVENTS_OF_A_NEW_ROOM
    rate = Figure("rooms per second", len(took) / meter.wall_seconds, "/s")
    return [rate, *latencies(took), *meter.cpu_per(len(took), "room")]


async def fanout(bench: Bench) -> list[Figure]:
    """100 members wait in /sync; from the start of a send to the last byte at each of them."""
    users = await bench.site.users(WAITING_SYNCS)
    room_id = await bench.site.shared_room(users)
    sent: dict[str, float] = {}
    seconds: list[float] = []

    async def wait(user: User, since: str, waits: asyncio.Event) -> None:
        seen = 0
        while seen < FANOUT_MESSAGES:
            asyncio.get_running_loop().call_soon(waits.set)
            answer = await user.sync(since, timeout_ms=30_000)
            content = answer.json()
            since = content["next_batch"]
            for body in _bodies(content, room_id):
                seconds.append(answer.ended - sent[body])
                seen += 1

    since = [(await user.sync()).json()["next_batch"] for user in users]
    events = [asyncio.Event() for _ in users]
    with Meter(bench.pids) as meter:
        async with asyncio.TaskGroup() as group:
            for user, position, waits in zip(users, since, events, strict=True):
                group.create_task(wait(user, position, waits))
            await asyncio.gather(*(waits.wait() for waits in events))
            for number in range(FANOUT_MESSAGES):
                await asyncio.sleep(FANOUT_INTERVAL_SECONDS)  # an open loop: the next message does not wait for anybody
                sent[f"fanout {number}"] = time.perf_counter()
                await users[0].send(room_id, f"fanout {number}")
    bench.events += FANOUT_MESSAGES
    return [*latencies(seconds), *meter.cpu_per(len(seconds), "delivery")]


async def empty_sync(bench: Bench) -> list[Figure]:
    """8 clients sync with nothing new, each time with another filter."""
    users = await _users_in_many_rooms(bench)
    since = {user: str((await user.sync()).json()["next_batch"]) for user in users[:SYNCS_AT_ONCE]}
    numbers = itertools.count()

    def syncer(user: User) -> Callable[[], Awaitable[Answer]]:
        return lambda: user.sync(since[user], filter={"room": {"not_rooms": [f"!{next(numbers)}:nowhere"]}})

    took, meter = await repeat([syncer(user) for user in since], bench.seconds, bench.pids)
    rate = Figure("syncs per second", len(took) / meter.wall_seconds, "/s")
    return [rate, *latencies(took), *meter.cpu_per(len(took), "sync")]


async def initial_sync(bench: Bench) -> list[Figure]:
    """The first sync of somebody in 100 rooms: right after a start of the server, then warm."""
    users = await _users_in_many_rooms(bench)
    figures = []
    if bench.server is not None:
        await bench.restart()
        figures.append(Figure("after a restart", (await users[0].sync()).seconds * 1000, "ms"))
    await users[0].sync()
    with Meter(bench.pids) as meter:
        answers = [await users[0].sync() for _ in range(5)]
    figures.append(Figure("warm", statistics.median(answer.seconds for answer in answers) * 1000, "ms"))
    figures.append(Figure("size", len(answers[0].body) / 1024, "KiB"))
    return [*figures, *meter.cpu_per(len(answers), "sync")]


_in_many_rooms: dict[Site, list[User]] = {}


async def _users_in_many_rooms(bench: Bench) -> list[User]:
    """Ten users who share 100 rooms."""
    if bench.site not in _in_many_rooms:
        users = await gather_some(bench.site.user() for _ in range(10))  # who are in these rooms only

        async def fill(number: int) -> None:
            room_id = await users[0].create_room(preset="public_chat", name=f"Room {number}")
            for user in users[1:]:
                await user.join(room_id)
            for message in range(SYNC_ROOM_MESSAGES):
                await users[message % len(users)].send(room_id, f"message {message}")

        await gather_some(fill(number) for number in range(SYNC_ROOMS))
        bench.events += SYNC_ROOMS * (EVENTS_OF_A_NEW_ROOM + len(users) + SYNC_ROOM_MESSAGES)
        _in_many_rooms[bench.site] = users
    return _in_many_rooms[bench.site]


async def messages(bench: Bench) -> list[Figure]:
    """Scroll back through 1,000 messages, 100 at a time, three times."""
    user = (await bench.site.users(1))[0]
    room_id = await user.create_room(preset="private_chat")
    await gather_some(user.send(room_id, f"message {number}") for number in range(HISTORY_MESSAGES))
    bench.events += HISTORY_MESSAGES
    seconds: list[float] = []
    count = 0
    with Meter(bench.pids) as meter:
        for _ in range(3):
            start: str | None = ""
            while start is not None:
                answer = await user.call(
                    "GET",
                    f"/v3/rooms/{quote(room_id)}/messages?dir=b&limit={PAGE}" + (f"&from={start}" if start else ""),
                )
                page = answer.json()
                seconds.append(answer.seconds)
                count += len(page["chunk"])
                start = page.get("end")
    return [*latencies(seconds, "page"), *meter.cpu_per(count, "event")]


async def federation_send(bench: Bench) -> list[Figure]:
    """Messages to a room on another server: one at a time, then as fast as they are taken. CPU of both ends."""
    other = await bench.second_server()
    elsewhere = Site(other.base_url)
    senders, reader = await bench.site.users(FEDERATED_AT_ONCE), await elsewhere.user()
    room_id = await bench.site.shared_room(senders)
    joined = await reader.join(room_id, via=bench.own_server.server_name)
    arrived: dict[str, asyncio.Future[float]] = {}

    async def follow() -> None:
        since: str | None = None
        while True:
            answer = await reader.sync(
                since, timeout_ms=30_000 if since else 0, filter={"room": {"timeline": {"limit": 500}}}
            )
            content = answer.json()
            since = content["next_batch"]
            for body in _bodies(content, room_id):
                if body in arrived and not arrived[body].done():
                    arrived[body].set_result(answer.ended)

    async def send(number: int, text: str) -> float:
        """The time from the send to the arrival."""
        arrived[text] = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        await senders[number % len(senders)].send(room_id, text)
        return await arrived[text] - began

    follower = asyncio.create_task(follow())
    try:
        await send(0, "warm up")
        one_by_one = [await send(number, f"single {number}") for number in range(20)]
        with Meter([*bench.pids, other.pid]) as meter:
            await gather_some((send(n, f"burst {n}") for n in range(FEDERATED_MESSAGES)), FEDERATED_AT_ONCE * 8)
    finally:
        follower.cancel()
        await asyncio.wait({follower})
        elsewhere.http.close()
    bench.events += FEDERATED_MESSAGES
    return [
        Figure("join", joined.seconds * 1000, "ms"),
        *latencies(one_by_one),
        Figure("events per second", FEDERATED_MESSAGES / meter.wall_seconds, "/s"),
        *meter.cpu_per(FEDERATED_MESSAGES, "event"),
    ]


async def big_join(bench: Bench) -> list[Figure]:
    """Join a room of 1,000 members on a remote server, until the 200 and until /sync counts them all."""
    if bench.authority is None:
        return await _refuse(bench)
    user = (await bench.site.users(1))[0]
    remote = FakeRemote(bench.authority)
    room = remote.add_room(LARGE_ROOM_MEMBERS, "11")
    async with remote.serve():
        with Meter(bench.pids) as meter:
            joined = await user.join(room.room_id, via=remote.server_name)
        began = time.perf_counter()
        answer = await user.sync(filter={"room": {"rooms": [room.room_id], "state": {"lazy_load_members": True}}})
    summary = answer.json()["rooms"]["join"][room.room_id]["summary"]
    if summary["m.joined_member_count"] != LARGE_ROOM_MEMBERS + 1:
        raise RuntimeError(f"/sync counts {summary['m.joined_member_count']} members")
    bench.events += LARGE_ROOM_MEMBERS
    return [
        Figure("join", joined.seconds * 1000, "ms"),
        Figure("first sync after it", (answer.ended - began) * 1000, "ms"),
        *meter.cpu_per(1, "join"),
    ]


async def _refuse(bench: Bench) -> list[Figure]:
    await bench.second_server()  # says what is missing
    return []


async def resources(bench: Bench) -> list[Figure]:
    """Start with all that the other paths have left, idle memory after it, and the size of the database."""
    before = resident_mib(bench.own_server.pid)
    start = statistics.median([await bench.restart() for _ in range(3)])
    size = sum(file.stat().st_size for file in bench.own_server.config_file.parent.glob("*.db*"))
    return [
        Figure("memory before the restart", before, "MiB"),
        Figure("start", start, "s"),
        Figure("idle memory", resident_mib(bench.own_server.pid), "MiB"),
        Figure("disk per event", size / max(1, bench.events), "B"),
    ]


PATHS: dict[str, Path] = {
    path.__name__: path
    for path in (
        send_one_room,
        send_many_rooms,
        create_room,
        fanout,
        empty_sync,
        initial_sync,
        messages,
        federation_send,
        big_join,
        governance,
        resources,
    )
}
"""In the order in which they are measured: ``resources`` looks at what the others leave."""


def _bodies(sync: dict[str, Any], room_id: str) -> list[str]:
    """The message bodies that a sync response has for a room."""
    room = sync.get("rooms", {}).get("join", {}).get(room_id)
    return (
        [event["content"]["body"] for event in room["timeline"]["events"] if "body" in event["content"]] if room else []
    )
