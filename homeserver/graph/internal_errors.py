"""Where this server stumbles over an event of another one: over a bug of its own, that is.

Events come together in transactions, and what comes in one is repeated until all of it is answered for. So one that we
stumble over is answered for as well, as not taken in, and keeps no other one out.
"""

from __future__ import annotations

import structlog

from homeserver.errors import HomeserverError
from homeserver.storage.database import UNAVAILABLE

logger = structlog.get_logger(__name__)


class InternalError(HomeserverError):
    """Something went wrong that should not have; what it was stands in the log."""

    def __init__(self) -> None:
        super().__init__("The server failed to handle the event")


def is_internal_error(error: BaseException) -> bool:
    """Whether it is a bug that was met, and not that the server stops or the database is out of reach."""
    return isinstance(error, Exception) and not isinstance(error, (HomeserverError, *UNAVAILABLE))


def as_outcome(error: BaseException, *, room_id: object, event_id: str | None) -> HomeserverError:
    """What to answer for an event, or all events of a room, that led to this error; a bug is logged.

    Raises ``error`` again where it says nothing of the event: then the other server shall come again.
    """
    if isinstance(error, HomeserverError):
        return error
    if not is_internal_error(error):
        raise error
    logger.error("internal error while handling an event", exc_info=error, room_id=str(room_id), event_id=event_id)
    return InternalError()
