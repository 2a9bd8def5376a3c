"""Sending events to a room: messages, state and redactions.

These endpoints are called most often, so they are plain Starlette routes, without FastAPI's work for each request.

https://spec.matrix.org/v1.19/client-server-api/#sending-events-to-a-room
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from homeserver.accounts.access_tokens import Requester
from homeserver.client_api.authentication import authenticate
from homeserver.client_api.limiting import limit_account
from homeserver.errors import BadAlias, BadJson, Forbidden, InvalidParam, MatrixError
from homeserver.graph.send import Sender
from homeserver.graph.state import RoomHeads
from homeserver.limits.rate_limits import Limit
from homeserver.membership.membership import Memberships
from homeserver.protocol.events import EventDraft
from homeserver.protocol.identifiers import is_valid_event_id, is_valid_user_id
from homeserver.protocol.json_types import JsonObject
from homeserver.protocol.power_levels import check_levels, creators_of
from homeserver.rooms.aliases import RoomAliases
from homeserver.storage.appends import TransactionKey
from homeserver.web import get_service, json_response, optional_str, parse_json_object, read_body

TXN_ID_BYTES_MAX = 255
EVENT_BODY_BYTES_MAX = 256 * 1024
"""The largest body, with room for white space and escapes; the event itself has its own limit."""
NEW_ALIASES_MAX = 20
"""How many aliases one m.room.canonical_alias may add: each may need a request to another server."""
ONLY_STATE = ("m.room.create", "m.room.member")
"""Types that the authorization rules always reject without a state key."""
MEMBERSHIPS = ("join", "invite", "knock", "leave", "ban")
MEMBERSHIP_LIMITS = {"join": Limit.JOINS, "knock": Limit.JOINS, "invite": Limit.INVITES}
"""What a state event for a membership counts as, besides an event."""
BYTES_PER_COST = 4096
"""An event counts as one message, and as one more for each of these many bytes of its body."""


async def send_message(request: Request) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidsendeventtypetxnid

    Older clients use POST without a transaction ID; each such request sends another event.
    """
    requester = await authenticate(request)
    parameters = request.path_params
    room_id, event_type = parameters["room_id"], parameters["event_type"]
    content = await _content(request, requester)
    if event_type == "m.room.redaction":
        return await _redact(request, requester, content.pop("redacts", None), content)
    if event_type in ONLY_STATE:
        raise BadJson(f"{event_type} is a state event: it can only be sent as a state event")
    _check_tombstone(room_id, event_type, content)
    txn = transaction_key(request, requester, f"send/{room_id}/{event_type}")
    draft = EventDraft(event_type, requester.user_id, content)
    stored = await get_service(request, Sender).send(room_id, draft, txn)
    return json_response({"event_id": stored.event_id})


async def redact_event(request: Request) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidredacteventidtxnid

    Older clients use POST without a transaction ID.
    """
    requester = await authenticate(request)
    body = await _content(request, requester, empty_is_object=True)
    reason = optional_str(body, "reason")
    content = {} if reason is None else {"reason": reason}
    return await _redact(request, requester, request.path_params["event_id"], content)


async def _content(request: Request, requester: Requester, *, empty_is_object: bool = False) -> JsonObject:
    """The body of a request that makes an event, counted by its size for the user. Raises ``LimitExceeded``."""
    body = await read_body(request, EVENT_BODY_BYTES_MAX)
    limit_account(request, requester, Limit.MESSAGES, 1 + len(body) // BYTES_PER_COST)
    return {} if empty_is_object and not body else parse_json_object(body)


async def _redact(request: Request, requester: Requester, target: object, content: JsonObject) -> Response:
    if not isinstance(target, str):
        raise BadJson("'redacts' is not a string")
    if not is_valid_event_id(target):
        raise InvalidParam("The event to redact is not named by an event ID")
    room_id = request.path_params["room_id"]
    txn = transaction_key(request, requester, f"redact/{room_id}/{target}")
    draft = EventDraft("m.room.redaction", requester.user_id, content, redacts=target)
    stored = await get_service(request, Sender).redact(room_id, draft, txn)
    return json_response({"event_id": stored.event_id})


async def set_room_state_with_key(request: Request) -> Response:
    """https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidstateeventtypestatekey"""
    requester = await authenticate(request)
    parameters = request.path_params
    room_id, event_type, state_key = parameters["room_id"], parameters["event_type"], parameters.get("state_key", "")
    content = await _content(request, requester)
    draft = EventDraft(event_type, requester.user_id, content, state_key)
    if event_type == "m.room.member":
        if not is_valid_user_id(state_key):
            raise BadJson("The state key of m.room.member is a user ID")
        membership = content.get("membership")
        if membership not in MEMBERSHIPS:
            raise BadJson(f"'membership' must be one of {', '.join(MEMBERSHIPS)}")
        if (limit := MEMBERSHIP_LIMITS.get(membership)) is not None:
            limit_account(request, requester, limit)
        event_id = await get_service(request, Memberships).send_member(room_id, draft)
        return json_response({"event_id": event_id})
    if event_type == "m.room.create":
        raise BadJson("A room has one m.room.create event, with which it begins")
    _check_tombstone(room_id, event_type, content)
    if event_type == "m.room.power_levels" and not state_key:
        check_levels(content)
        await _check_creators(request, requester, room_id, content)
    if event_type == "m.room.canonical_alias" and not state_key:
        await _check_canonical_alias(request, requester, room_id, content)
    stored = await get_service(request, Sender).send(room_id, draft)
    return json_response({"event_id": stored.event_id})


def _check_tombstone(room_id: str, event_type: str, content: JsonObject) -> None:
    if event_type == "m.room.tombstone" and content.get("replacement_room") == room_id:
        raise InvalidParam("A room cannot be replaced by itself")


async def _check_creators(request: Request, requester: Requester, room_id: str, content: JsonObject) -> None:
    """Raise M_BAD_JSON, not M_FORBIDDEN: in version 12, power levels can never name a creator of the room."""
    heads = get_service(request, RoomHeads)
    head = await heads.find(room_id)
    if head is None or not head.version.creators_have_infinite_power or requester.user_id not in head.joined:
        return
    creators = creators_of(head.version, await heads.state_event(head, "m.room.create"))
    users = content.get("users")
    if isinstance(users, dict) and not creators.isdisjoint(users):
        raise BadJson("'users' must not name a creator of the room", reason="creator")


async def _check_canonical_alias(request: Request, requester: Requester, room_id: str, content: JsonObject) -> None:
    """Raise M_BAD_ALIAS unless new aliases point to the room, M_INVALID_PARAM for a malformed alias."""
    heads = get_service(request, RoomHeads)
    head = await heads.newest_where(room_id, lambda head: requester.user_id in head.joined)
    if head is None:
        raise Forbidden("You are not in this room")
    standing = await heads.state_event(head, "m.room.canonical_alias")
    old = set(_aliases_in(standing.content, strict=False)) if standing is not None else set()
    new = [alias for alias in dict.fromkeys(_aliases_in(content)) if alias not in old]
    if len(new) > NEW_ALIASES_MAX:
        raise InvalidParam(f"{NEW_ALIASES_MAX} aliases can be added at once")
    for alias in new:
        try:
            target = await get_service(request, RoomAliases).resolve(alias)
        except InvalidParam:
            raise
        except MatrixError as error:
            raise BadAlias(f"{alias} does not point to this room") from error
        if target.room_id != room_id:
            raise BadAlias(f"{alias} does not point to this room")


def _aliases_in(content: JsonObject, *, strict: bool = True) -> list[str]:
    alias, others = content.get("alias"), content.get("alt_aliases")
    found = [*([] if alias in (None, "") else [alias]), *(others if isinstance(others, list) else [])]
    wrong = not all(isinstance(name, str) for name in found) or not (others is None or isinstance(others, list))
    if wrong and strict:
        raise InvalidParam("alias and alt_aliases are room aliases")
    return [name for name in found if isinstance(name, str)]


def transaction_key(request: Request, requester: Requester, scope: str) -> TransactionKey | None:
    """The key by which a repeated request from the same device is recognised; None without a transaction ID."""
    txn_id: str | None = request.path_params.get("txn_id")
    if txn_id is None:
        return None
    if len(txn_id) > TXN_ID_BYTES_MAX:
        raise InvalidParam(f"A transaction ID has {TXN_ID_BYTES_MAX} characters at most")
    return get_service(request, Sender).transaction_key(requester.user_id, requester.device_id, scope, txn_id)


routes = [
    Route("/rooms/{room_id}/send/{event_type}/{txn_id}", send_message, methods=["PUT"]),
    Route("/rooms/{room_id}/send/{event_type}", send_message, methods=["POST"]),
    Route("/rooms/{room_id}/redact/{event_id}/{txn_id}", redact_event, methods=["PUT"]),
    Route("/rooms/{room_id}/redact/{event_id}", redact_event, methods=["POST"]),
    Route("/rooms/{room_id}/state/{event_type}/{state_key}", set_room_state_with_key, methods=["PUT"]),
    Route("/rooms/{room_id}/state/{event_type}", set_room_state_with_key, methods=["PUT"]),
]
