"""Creating rooms.

https://spec.matrix.org/v1.19/client-server-api/#creation
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.client_api.authentication import Authenticated
from homeserver.client_api.capabilities import Capabilities
from homeserver.client_api.limiting import limit_account, per_account
from homeserver.errors import BadJson, Forbidden, InvalidParam, UnsupportedRoomVersion
from homeserver.limits.rate_limits import Limit
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.power_levels import check_levels
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.rooms.creation import PRESETS, RoomCreation, RoomRequest
from homeserver.web import (
    json_response,
    optional_bool,
    optional_list_of_objects,
    optional_list_of_str,
    optional_object,
    optional_str,
    read_json_object,
    required_object,
    required_str,
    service,
)

router = APIRouter()

VISIBILITIES = ("private", "public")
FAILED_INVITATIONS = "homeserver.failed_invitations"
"""In an answer: the invitations that could not be sent, each with ``user_id``, ``errcode`` and ``error``."""


@router.post("/createRoom", dependencies=[per_account(Limit.ROOMS)])
async def create_room(
    request: Request,
    requester: Authenticated,
    creation: Annotated[RoomCreation, service(RoomCreation)],
    capabilities: Annotated[Capabilities, service(Capabilities)],
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom"""
    if requester.is_guest:
        raise Forbidden("Guests cannot create rooms")
    body = await read_json_object(request)
    room_request = _room_request(body, capabilities.default_room_version)
    if room_request.invite:
        limit_account(request, requester, Limit.INVITES, len(room_request.invite))
    created = await creation.create(requester.user_id, room_request)
    answer: JsonObject = {"room_id": created.room_id}
    if created.failed_invitations:
        # NOTSPEC: the specification has no answer for a room that was created although some invitations failed.
        answer[FAILED_INVITATIONS] = [failure.body() for failure in created.failed_invitations]
    return json_response(answer)


def _room_request(body: JsonObject, default_version: str) -> RoomRequest:
    version = ROOM_VERSIONS.get(_value_or(optional_str(body, "room_version"), default_version))
    if version is None:
        raise UnsupportedRoomVersion(f"Room version {body['room_version']!r} is not supported")
    visibility = _value_or(optional_str(body, "visibility"), "private")
    if visibility not in VISIBILITIES:
        raise InvalidParam(f"visibility is one of {', '.join(VISIBILITIES)}")
    implied = "public_chat" if visibility == "public" else "private_chat"
    preset = PRESETS.get(_value_or(optional_str(body, "preset"), implied))
    if preset is None:
        raise InvalidParam(f"preset is one of {', '.join(PRESETS)}")
    if optional_list_of_objects(body, "invite_3pid"):
        raise InvalidParam("This server invites by Matrix user ID only")
    power_levels = optional_object(body, "power_level_content_override")
    initial_state = [_initial_state(event) for event in optional_list_of_objects(body, "initial_state")]
    check_levels(power_levels or {})
    for event_type, state_key, content in initial_state:
        if event_type == "m.room.power_levels" and not state_key:
            check_levels(content)
    return RoomRequest(
        version=version,
        preset=preset,
        published=visibility == "public",
        alias_localpart=optional_str(body, "room_alias_name"),
        name=optional_str(body, "name"),
        topic=optional_str(body, "topic"),
        invite=optional_list_of_str(body, "invite"),
        creation_content=optional_object(body, "creation_content") or {},
        initial_state=initial_state,
        is_direct=optional_bool(body, "is_direct"),
        power_levels=power_levels,
    )


def _initial_state(event: JsonObject) -> tuple[str, str, JsonObject]:
    state_key: Any = event.get("state_key", "")
    if not isinstance(state_key, str):
        raise BadJson("'state_key' of an event in initial_state is not a string")
    return required_str(event, "type"), state_key, required_object(event, "content")


def _value_or(value: str | None, default: str) -> str:
    return default if value is None else value
