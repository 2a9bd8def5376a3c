"""What clients are told when a request to another server failed."""

from __future__ import annotations

import re

from homeserver.errors import (
    Forbidden,
    HomeserverError,
    IncompatibleRoomVersion,
    InviteBlocked,
    LimitExceeded,
    MatrixError,
    NotFound,
    RefusedElsewhere,
    RemoteError,
    RemoteFailed,
    RemoteRefused,
    RemoteTimedOut,
    UnableToAuthoriseJoin,
    UnableToGrantJoin,
)

_VERSION_CODES = frozenset({"M_INCOMPATIBLE_ROOM_VERSION", "M_UNSUPPORTED_ROOM_VERSION"})
_OUR_FAULT_CODES = frozenset(
    {
        "M_BAD_JSON",
        "M_NOT_JSON",
        "M_MISSING_PARAM",
        "M_INVALID_PARAM",
        "M_UNRECOGNIZED",
        "M_UNAUTHORIZED",
        "M_MISSING_TOKEN",
        "M_UNKNOWN_TOKEN",
        "M_USER_DEACTIVATED",
        "M_USER_LOCKED",
        "M_USER_SUSPENDED",
        "M_TOO_LARGE",
    }
)
"""Codes that are about our server or its request. Our user's client would misunderstand them, and may log out."""
_PASSED_STATUSES = frozenset({400, 403, 404, 409, 410, 422, 451})
_ERRCODE = re.compile(r"[A-Z][A-Z0-9_.]{0,99}")
_ELSEWHERE_CODES = frozenset({UnableToAuthoriseJoin.errcode, UnableToGrantJoin.errcode})


def as_matrix_error(error: HomeserverError, what: str) -> MatrixError:
    """The answer for a client whose request failed at another server; ``what`` names the intended action."""
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
    if error.status == 403 and error.errcode in (Forbidden.errcode, "M_UNKNOWN"):
        return Forbidden(error.error or f"{error.destination} does not allow it")
    if error.status == 404 and error.errcode == NotFound.errcode:
        return NotFound(error.error or None)
    if error.status == 429:
        return LimitExceeded(f"Could not {what} now: {error.destination} asks to wait")
    if (
        error.status in _PASSED_STATUSES
        and error.errcode not in _OUR_FAULT_CODES
        and _ERRCODE.fullmatch(error.errcode) is not None
    ):
        return RefusedElsewhere(error.status, error.errcode, error.error)
    if error.status == 403:
        return Forbidden(error.error or f"{error.destination} does not allow it")
    # "If M_MISSING_PARAM or M_INVALID_PARAM is returned and the request is associated with a Client-Server API
    # request, the Client-Server API request SHOULD fail with a 5xx error rather than being passed through."
    return RemoteFailed(f"Could not {what}: {said} ({error.status} {error.errcode})")
