"""What all HTTP shells share: reading requests, answering, errors, CORS, and finding the route.

An endpoint reads like this; ``install`` makes the application behave as Matrix asks::

    router = APIRouter()

    @router.put("/rooms/{room_id}/topic")
    async def set_topic(
        room_id: str, request: Request, requester: Authenticated, rooms: Annotated[Rooms, service(Rooms)]
    ) -> Response:
        body = await read_json_object(request)
        event_id = await rooms.set_topic(requester.user_id, room_id, required_str(body, "topic"))
        return json_response({"event_id": event_id})

``responses`` makes answers, ``bodies`` and ``parameters`` take requests apart, ``services`` finds what an endpoint
works with, ``routes`` finds the endpoint, and ``edge`` is the outermost layer: CORS and errors.
"""

from homeserver.web.bodies import (
    BODY_BYTES_MAX,
    BodyBudget,
    optional_bool,
    optional_int,
    optional_list_of_objects,
    optional_list_of_str,
    optional_object,
    optional_str,
    parse_json_object,
    read_body,
    read_json_object,
    required_bool,
    required_int,
    required_list_of_objects,
    required_list_of_str,
    required_object,
    required_str,
)
from homeserver.web.client_addresses import ClientAddresses
from homeserver.web.edge import Edge, install
from homeserver.web.large_answers import LargeAnswers
from homeserver.web.parameters import query_bool, query_choice, query_int, query_str, query_strs, required_query_str
from homeserver.web.responses import bytes_response, error_response, json_response
from homeserver.web.services import get_service, service

__all__ = [
    "BODY_BYTES_MAX",
    "BodyBudget",
    "ClientAddresses",
    "Edge",
    "LargeAnswers",
    "bytes_response",
    "error_response",
    "get_service",
    "install",
    "json_response",
    "optional_bool",
    "optional_int",
    "optional_list_of_objects",
    "optional_list_of_str",
    "optional_object",
    "optional_str",
    "parse_json_object",
    "query_bool",
    "query_choice",
    "query_int",
    "query_str",
    "query_strs",
    "read_body",
    "read_json_object",
    "required_bool",
    "required_int",
    "required_list_of_objects",
    "required_list_of_str",
    "required_object",
    "required_query_str",
    "required_str",
    "service",
]
