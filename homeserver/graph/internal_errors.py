"""Internal errors, which are bugs of this server, while it handles an event of another server.

A transaction holds many events, and is repeated until all of them are answered. So an event that causes an internal
error is answered too, as refused, and does not keep the others out.
"""

from __future__ import annotations

import structlog

from homeserver.errors import HomeserverError
from homeserver.storage.database import UNAVAILABLE

logger = structlog.get_logger(__name__)


class InternalError(HomeserverError):
    """An internal error occurred; the log has the details."""

    def __init__(self) -> None:
        super().__init__("The server failed to handle the event")


def is_internal_error(error: BaseException) -> bool:
    """Whether an exception is an internal error, and not the server stopping or the database being unreachable."""
    return isinstance(error, Exception) and not isinstance(error, (HomeserverError, *UNAVAILABLE))


def as_outcome(error: BaseException, *, room_id: object, event_id: str | None) -> HomeserverError:
    """The outcome for an event, or for all events of a room, that caused this error; internal errors are logged.

    Raises ``error`` again if it is not about the event: then the other server has to try again.
    """
    if isinstance(error, HomeserverError):
        return error
    if not is_internal_error(error):
        raise error
    logger.error("internal error while handling an event", exc_info=error, room_id=str(room_id), event_id=event_id)
    return InternalError()
