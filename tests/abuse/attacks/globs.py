"""Patterns of others, by the thousand."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from tests.abuse.attack import attack
from tests.abuse.stage import Stage

ACL_GLOBS = 6_000


@attack(quick=True)
def a_filter_of_wildcards(stage: Stage) -> Iterator[None]:
    """A user syncs with three filters of 39 KB, each with 4,900 wildcards."""
    user = stage.user()
    user.ok("POST", "/createRoom", {})
    filters = [{"room": {"timeline": {"types": [f"*{start + n}*" for n in range(4_900)]}}} for start in (0, 1, 2)]
    yield
    for each in filters:
        filter_id = user.call("POST", f"/user/{quote(user.user_id)}/filter", each).json().get("filter_id", "0")
        user.call("GET", f"/sync?filter={filter_id}")


@attack(quick=True, rows_max=200)
def server_acls_of_globs(stage: Stage) -> Iterator[None]:
    """A peer sets ten server ACLs, each with 6,000 globs."""
    mallory = stage.remote()
    room = mallory.room()
    mallory.let_join(stage.user(), room)
    events = [
        room.state_event(
            "creator",
            "m.room.server_acl",
            {"allow": ["*"], "deny": [f"*{number}?" for number in range(first, first + ACL_GLOBS)]},
        )
        for first in range(10_000, 20_000, 1_000)
    ]
    yield
    for event in events:
        mallory.send(stage.server, event)
        mallory.send(stage.server, room.send("creator"))
