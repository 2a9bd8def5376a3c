"""Knocking upon rooms.

https://spec.matrix.org/v1.19/server-server-api/#knocking-rooms
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.errors import MissingParam
from homeserver.federation_api.gate import Origin, Signed
from homeserver.membership.handshake_templates import HandshakeTemplates
from homeserver.membership.resident import Resident
from homeserver.web import bytes_response, json_response, query_strs, service

router = APIRouter()

VERSIONS_MAX = 100


@router.get("/_matrix/federation/v1/make_knock/{room_id}/{user_id}")
async def make_knock(
    room_id: str,
    user_id: str,
    request: Request,
    origin: Origin,
    templates: Annotated[HandshakeTemplates, service(HandshakeTemplates)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1make_knockroomiduserid"""
    versions = query_strs(request, "ver", most=VERSIONS_MAX)
    if not versions:
        raise MissingParam("The query parameter 'ver' is missing")
    return json_response(await templates.make_knock(origin, room_id, user_id, versions))


@router.put("/_matrix/federation/v1/send_knock/{room_id}/{event_id}")
async def send_knock(
    room_id: str,
    event_id: str,
    signed: Signed,
    resident: Annotated[Resident, service(Resident)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1send_knockroomideventid"""
    return bytes_response(await resident.send_knock(signed.origin, room_id, event_id, signed.content))
