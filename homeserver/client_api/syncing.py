"""Syncing: what is new for this device.

https://spec.matrix.org/v1.19/client-server-api/#syncing
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from homeserver.accounts.filters import Filters
from homeserver.client_api.authentication import authenticate
from homeserver.errors import InvalidParam, NotFound
from homeserver.limits.fair_budget import FairBudget
from homeserver.protocol.filters import EVERYTHING, Filter
from homeserver.reading.tokens import parse_sync_token
from homeserver.sync.service import TIMEOUT_MS_MAX, Sync
from homeserver.sync.updates import SyncRequest
from homeserver.web import bytes_response, get_service, query_bool, query_choice, query_int, query_str
from homeserver.web.shares import hold

PRESENCE_STATES = frozenset({"offline", "online", "unavailable"})
INITIAL_SYNCS_AT_ONCE_MAX = 2
INITIAL_SYNCS_PER_USER_AT_ONCE_MAX = 1
USE_STATE_AFTER_UNSTABLE = "org.matrix.msc4222.use_state_after"


class InitialSyncs(FairBudget):
    """The places for first syncs, whose answers may have megabytes: a few at a time, and users take turns.

    A place is held until the answer is written, or waits in a file for its reader.
    """

    def __init__(self) -> None:
        super().__init__(
            INITIAL_SYNCS_AT_ONCE_MAX,
            per_subject=INITIAL_SYNCS_PER_USER_AT_ONCE_MAX,
            text="Too many first syncs at once",
        )


async def sync(request: Request) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync"""
    requester = await authenticate(request)
    since = query_str(request, "since")
    token = parse_sync_token(since) if since else None
    query_choice(request, "set_presence", PRESENCE_STATES, "online")
    asked = SyncRequest(
        user_id=requester.user_id,
        device_id=requester.device_id,
        since=token.position if token else None,
        typing_since=token.ephemeral if token else 0,
        filter=await _filter(request, requester.user_id),
        full_state=query_bool(request, "full_state"),
        state_after=query_bool(request, "use_state_after", query_bool(request, USE_STATE_AFTER_UNSTABLE)),
    )
    timeout_ms = query_int(request, "timeout", 0, maximum=TIMEOUT_MS_MAX)
    service = get_service(request, Sync)
    if asked.since is not None and not asked.full_state:
        return bytes_response(await service.sync(asked, timeout_ms, lambda: authenticate(request)))
    # Such a sync is answered at once, without waiting for news.
    places = get_service(request, InitialSyncs)
    await places.take(requester.user_id)
    hold(request.scope, lambda: places.release(requester.user_id))
    return bytes_response(await service.sync(asked, timeout_ms, lambda: authenticate(request)))


async def _filter(request: Request, user_id: str) -> Filter:
    text = query_str(request, "filter")
    if not text:
        return EVERYTHING
    try:
        return await get_service(request, Filters).get(user_id, text)
    except NotFound:
        raise InvalidParam("There is no such filter") from None


routes = [Route("/sync", sync, methods=["GET"])]
