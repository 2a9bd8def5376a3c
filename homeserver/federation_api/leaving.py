"""Leaving rooms, and rejecting invitations.

https://spec.matrix.org/v1.19/server-server-api/#leaving-rooms-rejecting-invites
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from homeserver.federation_api.gate import Origin, Signed
from homeserver.membership.handshake_templates import HandshakeTemplates
from homeserver.membership.resident import Resident
from homeserver.web import json_response, service

router = APIRouter()


@router.get("/_matrix/federation/v1/make_leave/{room_id}/{user_id}")
async def make_leave(
    room_id: str,
    user_id: str,
    origin: Origin,
    templates: Annotated[HandshakeTemplates, service(HandshakeTemplates)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1make_leaveroomiduserid"""
    return json_response(await templates.make_leave(origin, room_id, user_id))


@router.put("/_matrix/federation/v1/send_leave/{room_id}/{event_id}")
async def send_leave_v1(
    room_id: str,
    event_id: str,
    signed: Signed,
    resident: Annotated[Resident, service(Resident)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1send_leaveroomideventid"""
    await resident.send_leave(signed.origin, room_id, event_id, signed.content)
    return json_response([200, {}])


@router.put("/_matrix/federation/v2/send_leave/{room_id}/{event_id}")
async def send_leave_v2(
    room_id: str,
    event_id: str,
    signed: Signed,
    resident: Annotated[Resident, service(Resident)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_leaveroomideventid"""
    await resident.send_leave(signed.origin, room_id, event_id, signed.content)
    return json_response({})
