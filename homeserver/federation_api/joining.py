"""Joining rooms.

https://spec.matrix.org/v1.19/server-server-api/#joining-rooms
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.federation_api.expensive_requests import ExpensiveRequests
from homeserver.federation_api.gate import Origin, Signed
from homeserver.membership.handshake_templates import HandshakeTemplates
from homeserver.membership.resident import Resident
from homeserver.web import bytes_response, json_response, query_bool, query_strs, service

router = APIRouter()

VERSIONS_MAX = 100


@router.get("/_matrix/federation/v1/make_join/{room_id}/{user_id}")
async def make_join(
    room_id: str,
    user_id: str,
    request: Request,
    origin: Origin,
    templates: Annotated[HandshakeTemplates, service(HandshakeTemplates)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1make_joinroomiduserid"""
    # "The room versions the sending server has support for. Defaults to [1]."
    versions = query_strs(request, "ver", most=VERSIONS_MAX) or ["1"]
    return json_response(await templates.make_join(origin, room_id, user_id, versions))


@router.put("/_matrix/federation/v1/send_join/{room_id}/{event_id}")
async def send_join_v1(
    room_id: str,
    event_id: str,
    signed: Signed,
    resident: Annotated[Resident, service(Resident)],
    expensive: Annotated[ExpensiveRequests, service(ExpensiveRequests)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1send_joinroomideventid"""
    async with expensive.turn(signed.origin, may_wait_for_others=True):
        answer = await resident.send_join(signed.origin, room_id, event_id, signed.content)
    return bytes_response(b"[200,%s]" % answer)


@router.put("/_matrix/federation/v2/send_join/{room_id}/{event_id}")
async def send_join_v2(
    room_id: str,
    event_id: str,
    request: Request,
    signed: Signed,
    resident: Annotated[Resident, service(Resident)],
    expensive: Annotated[ExpensiveRequests, service(ExpensiveRequests)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_joinroomideventid"""
    omit = query_bool(request, "omit_members")
    async with expensive.turn(signed.origin, may_wait_for_others=True):
        answer = await resident.send_join(signed.origin, room_id, event_id, signed.content, omit_members=omit)
    return bytes_response(answer)
