"""Getting events for a room: its messages, single events, its state and its members.

https://spec.matrix.org/v1.19/client-server-api/#getting-events-for-a-room
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.routing import Route

from homeserver.client_api.authentication import Authenticated, authenticate
from homeserver.errors import InvalidParam
from homeserver.protocol.filters import RoomEventFilter, parse_room_event_filter_text
from homeserver.reading.history import LIMIT_MAX, History
from homeserver.reading.paging import PageRequest
from homeserver.reading.state_and_members import StateAndMembers
from homeserver.reading.tokens import parse_token
from homeserver.storage.history import JoinedMember
from homeserver.web import (
    bytes_response,
    get_service,
    json_response,
    query_choice,
    query_int,
    query_str,
    required_query_str,
    service,
)

router = APIRouter()

LIMIT_DEFAULT = 10
MEMBERSHIPS = frozenset({"join", "invite", "knock", "leave", "ban"})

State = Annotated[StateAndMembers, service(StateAndMembers)]


async def get_room_events(request: Request) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages"""
    requester = await authenticate(request)
    direction = required_query_str(request, "dir")
    if direction not in ("b", "f"):
        raise InvalidParam("dir must be 'b' or 'f'")
    text = query_str(request, "filter")
    asked = PageRequest(
        start=_token(request, "from"),
        end=_token(request, "to"),
        backwards=direction == "b",
        limit=max(1, query_int(request, "limit", LIMIT_DEFAULT, maximum=LIMIT_MAX)),
        filter=parse_room_event_filter_text(text) if text else RoomEventFilter(),
        start_token=query_str(request, "from") or None,
    )
    history = get_service(request, History)
    page = await history.messages(requester, request.path_params["room_id"], asked)
    return bytes_response(await history.render_page(requester, page))


def _token(request: Request, name: str) -> int | None:
    text = query_str(request, name)
    return parse_token(text) if text else None


@router.get("/rooms/{room_id}/event/{event_id}")
async def get_one_room_event(
    room_id: str, event_id: str, requester: Authenticated, history: Annotated[History, service(History)]
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomideventeventid"""
    return bytes_response(await history.event(requester, room_id, event_id))


@router.get("/rooms/{room_id}/state")
async def get_room_state(room_id: str, requester: Authenticated, reader: State) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidstate"""
    return bytes_response(await reader.state(requester.user_id, room_id))


@router.get("/rooms/{room_id}/state/{event_type}")
@router.get("/rooms/{room_id}/state/{event_type}/{state_key}")
async def get_room_state_with_key(
    room_id: str,
    event_type: str,
    request: Request,
    requester: Authenticated,
    reader: State,
    state_key: str = "",
) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidstateeventtypestatekey"""
    wanted_format = query_choice(request, "format", ("content", "event"), "content")
    stored = await reader.state_event(requester.user_id, room_id, (event_type, state_key))
    if wanted_format == "event":
        return bytes_response(await reader.render_event(stored))
    return bytes_response(reader.render_content(stored))


@router.get("/rooms/{room_id}/members")
async def get_members_by_room(room_id: str, request: Request, requester: Authenticated, reader: State) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmembers"""
    chunk = await reader.members(
        requester.user_id,
        room_id,
        at=_token(request, "at"),
        membership=query_choice(request, "membership", MEMBERSHIPS, "") or None,
        not_membership=query_choice(request, "not_membership", MEMBERSHIPS, "") or None,
    )
    return bytes_response(b'{"chunk":%b}' % chunk)


@router.get("/rooms/{room_id}/joined_members")
async def get_joined_members_by_room(room_id: str, requester: Authenticated, reader: State) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidjoined_members"""
    members = await reader.joined_members(requester.user_id, room_id)
    return json_response({"joined": {member.user_id: _profile(member) for member in members}})


def _profile(member: JoinedMember) -> dict[str, str | None]:
    # Always answer with both keys: clients written for other servers read them without checking that they exist.
    return {"display_name": member.display_name, "avatar_url": member.avatar_url}


@router.get("/joined_rooms")
async def get_joined_rooms(requester: Authenticated, reader: State) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3joined_rooms"""
    return json_response({"joined_rooms": await reader.joined_rooms(requester.user_id)})


routes = [Route("/rooms/{room_id}/messages", get_room_events, methods=["GET"])]
"""Clients page through history often, so these are plain routes, without FastAPI's work for each request."""
