"""What our users are told when other servers did not help."""

from __future__ import annotations

from homeserver.errors import (
    Forbidden,
    HomeserverError,
    IncompatibleRoomVersion,
    InviteBlocked,
    LimitExceeded,
    MatrixError,
    NotFound,
    RemoteError,
    RemoteFailed,
    RemoteRefused,
    RemoteTimedOut,
    UnableToAuthoriseJoin,
    UnableToGrantJoin,
)
from homeserver.rooms.join_answers import UnusableAnswer

_VERSION_CODES = frozenset({"M_INCOMPATIBLE_ROOM_VERSION", "M_UNSUPPORTED_ROOM_VERSION"})
_ELSEWHERE_CODES = frozenset({UnableToAuthoriseJoin.errcode, UnableToGrantJoin.errcode})


def as_matrix_error(error: HomeserverError, what: str) -> MatrixError:
    """The answer for a client whose request failed at another server; ``what`` was to be done."""
    if isinstance(error, RemoteRefused):
        return _refusal(error, what)
    if isinstance(error, RemoteError):
        if "in time" in error.message:
            return RemoteTimedOut(f"Could not {what}: {error.destination} did not answer in time")
        return RemoteFailed(f"Could not {what}: {error.destination} could not be reached ({error.message})")
    return RemoteFailed(f"Could not {what}: {error}")


def _refusal(error: RemoteRefused, what: str) -> MatrixError:
    said = f"{error.destination}: {error.error}" if error.error else error.destination
    if error.errcode in _VERSION_CODES:
        # "Inspect the room_version property of the error response for the room's version."
        version = {} if error.room_version is None else {"room_version": error.room_version}
        return IncompatibleRoomVersion(f"Could not {what}: {said}", **version)
    if error.errcode in _ELSEWHERE_CODES:
        return Forbidden(f"Could not {what}: {said}")
    if error.errcode == InviteBlocked.errcode:
        return InviteBlocked(error.error or None)
    if error.status == 403:
        return Forbidden(error.error or f"{error.destination} does not allow it")
    if error.status == 404 and error.errcode == NotFound.errcode:
        return NotFound(error.error or None)
    if error.status == 429:
        return LimitExceeded(f"Could not {what} now: {error.destination} asks to wait")
    # "If M_MISSING_PARAM or M_INVALID_PARAM is returned and the request is associated with a Client-Server API
    # request, the Client-Server API request SHOULD fail with a 5xx error rather than being passed through."
    return RemoteFailed(f"Could not {what}: {said} ({error.status} {error.errcode})")


class Attempts:
    """The failures of several servers that were asked one after the other, and what they come to."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures: list[tuple[str, RemoteError | UnusableAnswer]] = []

    def failed(self, server_name: str, error: RemoteError | UnusableAnswer) -> None:
        """A server did not help."""
        self._failures.append((server_name, error))

    def all_forbade(self, server_name: str) -> bool:
        """Whether every server said that it is not allowed, that one among them."""
        forbade = [
            name
            for name, error in self._failures
            if isinstance(error, RemoteRefused) and error.status == 403 and error.errcode == Forbidden.errcode
        ]
        return server_name in forbade and len(forbade) == len(self._failures)

    def error(self) -> MatrixError:
        """The failure that says most to the user: a clear refusal rather than a server that could not be reached."""
        if not self._failures:
            return NotFound(f"Could not {self._what}: no server is known that is in it")
        errors = [as_matrix_error(error, self._what) for _, error in self._failures]
        for kind in (Forbidden, IncompatibleRoomVersion, LimitExceeded):
            for error in errors:
                if isinstance(error, kind):
                    return error
        if all(isinstance(error, NotFound) for error in errors):
            return errors[0]
        return next(error for error in errors if not isinstance(error, NotFound))
