"""Retrieving events, states and event authorization.

https://spec.matrix.org/v1.19/server-server-api/#retrieving-events
https://spec.matrix.org/v1.19/server-server-api/#retrieving-event-authorisation-information
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.federation_api.answers import PduAnswers
from homeserver.federation_api.expensive_requests import ExpensiveRequests
from homeserver.federation_api.gate import Origin
from homeserver.reading.shared_history import SharedHistory
from homeserver.web import bytes_response, json_response, required_query_str, service

router = APIRouter()


@router.get("/_matrix/federation/v1/event/{event_id}")
async def get_event(
    event_id: str,
    origin: Origin,
    history: Annotated[SharedHistory, service(SharedHistory)],
    answers: Annotated[PduAnswers, service(PduAnswers)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1eventeventid"""
    return answers.transaction([await history.event(origin, event_id)])


@router.get("/_matrix/federation/v1/state/{room_id}")
async def get_room_state(
    room_id: str,
    request: Request,
    origin: Origin,
    history: Annotated[SharedHistory, service(SharedHistory)],
    expensive: Annotated[ExpensiveRequests, service(ExpensiveRequests)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1stateroomid"""
    event_id = required_query_str(request, "event_id")
    async with expensive.turn(origin):
        answer = await history.state(origin, room_id, event_id)
    return bytes_response(answer)


@router.get("/_matrix/federation/v1/state_ids/{room_id}")
async def get_room_state_ids(
    room_id: str,
    request: Request,
    origin: Origin,
    history: Annotated[SharedHistory, service(SharedHistory)],
    expensive: Annotated[ExpensiveRequests, service(ExpensiveRequests)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1state_idsroomid"""
    event_id = required_query_str(request, "event_id")
    async with expensive.turn(origin):
        state_ids, chain_ids = await history.state_ids(origin, room_id, event_id)
    return json_response({"auth_chain_ids": chain_ids, "pdu_ids": state_ids})


@router.get("/_matrix/federation/v1/event_auth/{room_id}/{event_id}")
async def get_event_auth(
    room_id: str,
    event_id: str,
    origin: Origin,
    history: Annotated[SharedHistory, service(SharedHistory)],
    expensive: Annotated[ExpensiveRequests, service(ExpensiveRequests)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1event_authroomideventid"""
    async with expensive.turn(origin):
        chain = await history.event_auth(origin, room_id, event_id)
    return bytes_response(b'{"auth_chain":[%s]}' % b",".join(chain))
