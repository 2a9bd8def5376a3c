"""Backfilling and retrieving missing events.

https://spec.matrix.org/v1.19/server-server-api/#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.errors import MissingParam
from homeserver.federation_api.answers import PduAnswers
from homeserver.federation_api.expensive_requests import ExpensiveRequests
from homeserver.federation_api.gate import Origin, Signed
from homeserver.reading.shared_history import BACKFILL_MAX, MISSING_EVENTS_MAX, SharedHistory
from homeserver.web import bytes_response, optional_int, query_int, query_strs, required_list_of_str, service

router = APIRouter()

EVENT_IDS_MAX = 500
MISSING_EVENTS_DEFAULT = 10


@router.get("/_matrix/federation/v1/backfill/{room_id}")
async def backfill_room(
    room_id: str,
    request: Request,
    origin: Origin,
    history: Annotated[SharedHistory, service(SharedHistory)],
    answers: Annotated[PduAnswers, service(PduAnswers)],
    expensive: Annotated[ExpensiveRequests, service(ExpensiveRequests)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1backfillroomid"""
    event_ids = query_strs(request, "v", most=EVENT_IDS_MAX)
    if not event_ids or "limit" not in request.query_params:
        raise MissingParam("The query parameters 'v' and 'limit' are required")
    limit = query_int(request, "limit", BACKFILL_MAX, maximum=BACKFILL_MAX)
    async with expensive.turn(origin):
        pdus = await history.backfill(origin, room_id, event_ids, limit)
    return answers.transaction(pdus)


@router.post("/_matrix/federation/v1/get_missing_events/{room_id}")
async def get_missing_previous_events(
    room_id: str,
    signed: Signed,
    history: Annotated[SharedHistory, service(SharedHistory)],
    expensive: Annotated[ExpensiveRequests, service(ExpensiveRequests)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1get_missing_eventsroomid"""
    body = signed.content
    limit = optional_int(body, "limit", minimum=0)
    async with expensive.turn(signed.origin):
        events = await history.missing_events(
            signed.origin,
            room_id,
            earliest=required_list_of_str(body, "earliest_events"),
            latest=required_list_of_str(body, "latest_events"),
            min_depth=optional_int(body, "min_depth") or 0,
            limit=MISSING_EVENTS_DEFAULT if limit is None else min(limit, MISSING_EVENTS_MAX),
        )
    return bytes_response(b'{"events":[%s]}' % b",".join(events))
