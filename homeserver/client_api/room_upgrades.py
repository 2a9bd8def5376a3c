"""Room upgrades.

https://spec.matrix.org/v1.19/client-server-api/#room-upgrades
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from homeserver.client_api.authentication import Authenticated
from homeserver.client_api.limiting import per_account
from homeserver.errors import Forbidden, InvalidParam, UnsupportedRoomVersion
from homeserver.limits.rate_limits import Limit
from homeserver.protocol.identifiers import is_valid_room_id, is_valid_user_id
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.rooms.old_rooms import UpgradeRequest
from homeserver.rooms.upgrades import RoomUpgrades
from homeserver.web import json_response, optional_list_of_str, read_json_object, required_str, service

router = APIRouter()


@router.post("/rooms/{room_id}/upgrade", dependencies=[per_account(Limit.ROOMS)])
async def upgrade_room(
    room_id: str,
    request: Request,
    requester: Authenticated,
    upgrades: Annotated[RoomUpgrades, service(RoomUpgrades)],
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidupgrade"""
    if requester.is_guest:
        raise Forbidden("Guests cannot upgrade rooms")
    body = await read_json_object(request)
    if not is_valid_room_id(room_id):
        raise InvalidParam("Not a room ID")
    wanted = required_str(body, "new_version")
    version = ROOM_VERSIONS.get(wanted)
    if version is None:
        raise UnsupportedRoomVersion(f"Room version {wanted!r} is not supported")
    creators = _additional_creators(body, version)
    replacement = await upgrades.upgrade(UpgradeRequest(requester.user_id, room_id, version, creators))
    return json_response({"replacement_room": replacement})


def _additional_creators(body: JsonObject, version: RoomVersion) -> list[str]:
    # "When upgrading to a room version which doesn't support additional creators, this field is ignored"
    if not version.creators_have_infinite_power:
        return []
    named = optional_list_of_str(body, "additional_creators")
    if not all(map(is_valid_user_id, named)):
        raise InvalidParam("additional_creators is not a list of user IDs")
    return named
