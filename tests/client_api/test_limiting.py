"""Every request that changes something counts for a rate limit."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from homeserver.limits.rate_limits import Limit, RateLimits
from tests.fakes.servers import Servers

SERVER = "ours.test"
NOT_LIMITED = {"/logout", "/logout/all"}
"""They only take away, and need a token that they take away too."""
BODIES: dict[str, Any] = {
    "/login": {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}, "password": "x"}
}
ALSO_LIMITED = [
    ("GET", "/_matrix/client/v3/profile/@alice:ours.test"),
    ("GET", "/_matrix/client/v3/directory/room/%23a:ours.test"),
    ("GET", "/_matrix/client/v3/register/available?username=bob"),
]


def changing_requests(app: FastAPI) -> list[tuple[str, str]]:
    found = []
    for context in iter_route_contexts(app.router.routes):
        path = context.path or ""
        if path.startswith(("/_matrix/client/v3/", "/_matrix/client/v1/", "/_homeserver/v1/")):
            filled = path.replace("{user_id}", f"@alice:{SERVER}").replace("{state_key}", "")
            filled = re.sub(r"\{\w+\}", "m.x", filled)
            found += [(method, filled) for method in sorted((context.methods or set()) - {"GET", "HEAD", "OPTIONS"})]
    return found


def use_up(limits: RateLimits, *subjects: str) -> None:
    for limit in Limit:
        for subject in subjects:
            limits.allows(limit, subject)


def test_every_request_that_changes_something_has_a_limit(servers: Servers) -> None:
    async def story() -> None:
        async with servers:
            rates = {str(limit): "1/h, burst 1" for limit in Limit}
            ours = await servers.ours(SERVER, registration={"enabled": True}, rate_limits=rates)
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(ours.app, client=("192.0.2.1", 1)), base_url=f"https://{SERVER}"
            ) as client:
                registration = {"username": "alice", "password": "secret", "auth": {"type": "m.login.dummy"}}
                alice = (await client.post("/_matrix/client/v3/register", json=registration)).json()
                headers = {"Authorization": f"Bearer {alice['access_token']}"}
                use_up(ours.get(RateLimits), alice["user_id"], f"{alice['user_id']} {alice['device_id']}", "192.0.2.1")
                requests = changing_requests(ours.app)
                assert len(requests) > 30
                unlimited = []
                for method, path in [*requests, *ALSO_LIMITED]:
                    short = path.removeprefix("/_matrix/client/v3")
                    if short in NOT_LIMITED:
                        continue
                    answer = await client.request(method, path, headers=headers, json=BODIES.get(short, {}))
                    if answer.status_code != 429:
                        unlimited.append((method, path, answer.status_code))
                        continue
                    assert answer.json()["errcode"] == "M_LIMIT_EXCEEDED"
                    assert answer.json()["retry_after_ms"] > 0
                    assert int(answer.headers["retry-after"]) > 0
                assert unlimited == []

    asyncio.run(story())
