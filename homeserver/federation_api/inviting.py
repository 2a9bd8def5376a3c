"""Inviting to a room.

https://spec.matrix.org/v1.19/server-server-api/#inviting-to-a-room
"""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from homeserver.federation_api.gate import SignedRequest, signed_request
from homeserver.limits.rate_limits import Limit
from homeserver.membership.incoming_invitations import IncomingInvitations
from homeserver.protocol.json_types import JsonObject
from homeserver.web import (
    json_response,
    optional_list_of_objects,
    optional_object,
    required_object,
    required_str,
    service,
)

router = APIRouter()

BODY_BYTES_MAX = 4 * 1024 * 1024
"""An invitation with the stripped state that describes the room; each of its events may have 64 KiB."""

SignedInvitation = Annotated[SignedRequest, signed_request(BODY_BYTES_MAX, Limit.FEDERATION_INVITES)]


@router.put("/_matrix/federation/v2/invite/{room_id}/{event_id}")
async def send_invite_v2(
    room_id: str,
    event_id: str,
    signed: SignedInvitation,
    invitations: Annotated[IncomingInvitations, service(IncomingInvitations)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2inviteroomideventid"""
    pdu = required_object(signed.content, "event")
    version = required_str(signed.content, "room_version")
    room_state = optional_list_of_objects(signed.content, "invite_room_state")
    event = await invitations.receive(signed.origin, room_id, event_id, pdu, version, room_state)
    return json_response({"event": orjson.Fragment(event.json)})


@router.put("/_matrix/federation/v1/invite/{room_id}/{event_id}")
async def send_invite_v1(
    room_id: str,
    event_id: str,
    signed: SignedInvitation,
    invitations: Annotated[IncomingInvitations, service(IncomingInvitations)],
) -> Response:
    """https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1inviteroomideventid"""
    unsigned: JsonObject = optional_object(signed.content, "unsigned") or {}
    room_state = optional_list_of_objects(unsigned, "invite_room_state")
    # "Servers which receive a v1 invite request must assume that the room version is either "1" or "2"": both have the
    # same event format, and the create event, if it is in the stripped state, says which it is.
    version = _version_of(room_state)
    event = await invitations.receive(signed.origin, room_id, event_id, signed.content, version, room_state)
    return json_response([200, {"event": orjson.Fragment(event.json)}])


def _version_of(room_state: list[JsonObject]) -> str:
    for entry in room_state:
        content = entry.get("content")
        if entry.get("type") == "m.room.create" and isinstance(content, dict) and content.get("room_version") == "2":
            return "2"
    return "1"
