"""Every error that this server raises on purpose, and the Matrix code each becomes.

The tree:

    HomeserverError
    ├── ConfigurationError          a bad setting; stops the start with exit status 2
    ├── InvalidEvent                a PDU that is not an event of its room version (check 1)
    │   └── NotCanonical            ... because it has no (strictly) canonical JSON
    ├── InvalidSignature            a signature that is missing or wrong (check 2)
    ├── NotAuthorized               an event that breaks an authorization rule (checks 4 to 6)
    ├── RemoteError                 a request to another server failed
    │   ├── RemoteUnreachable       no connection, no answer in time, or an answer that is not Matrix
    │   │   └── NoPlace             it was not asked: too many other requests run
    │   ├── RemoteRefused           it answered with an error; carries status and errcode
    │   └── IncompleteAnswer        it answered, but parts are missing or contradict each other
    └── MatrixError                 an error answer to a request: an HTTP status and an errcode
        ├── NotJson, BadJson, MissingParam, InvalidParam, TooLarge ...
        └── Forbidden, NotFound, UnknownToken, MissingToken, Unrecognized ...

https://spec.matrix.org/v1.19/client-server-api/#standard-error-response
"""

from __future__ import annotations

from typing import Any, ClassVar


class HomeserverError(Exception):
    """The base class of everything that is raised on purpose."""


class ConfigurationError(HomeserverError):
    """A setting that cannot be used. The text names the key, the value and what was expected."""


class InvalidEvent(HomeserverError):
    """A PDU does not fit the event format of its room version; it is dropped."""


class NotCanonical(InvalidEvent):
    """A value has no canonical JSON, or not the strict kind that room version 6 and later require."""


class InvalidSignature(HomeserverError):
    """A required signature is missing, wrong, or by an unknown key."""


class NotAuthorized(HomeserverError):
    """An event breaks an authorization rule. The text gives the reason."""


class RemoteError(HomeserverError):
    """A request to another server failed or was refused. ``destination`` names the server."""

    def __init__(self, destination: str, message: str) -> None:
        super().__init__(f"{destination}: {message}")
        self.destination = destination
        self.message = message


class RemoteUnreachable(RemoteError):
    """No connection, no answer in time, or an answer that is not Matrix."""


class NoPlace(RemoteUnreachable):
    """The server was not asked, because this server makes too many other requests of the kind: no fault of its own."""

    def __init__(self, destination: str) -> None:
        super().__init__(destination, "too many requests to other servers are under way")


class RemoteBrokeOff(RemoteUnreachable):
    """The connection ended before the answer was complete. The server may or may not have done what was asked."""


class IncompleteAnswer(RemoteError):
    """Parts that an answer refers to cannot be fetched, or it contradicts itself, so it cannot be used."""


class RemoteRefused(RemoteError):
    """The other server answered with an HTTP error."""

    def __init__(
        self,
        destination: str,
        status: int,
        errcode: str,
        message: str,
        *,
        room_version: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(destination, f"{status} {errcode} {message}")
        self.status = status
        self.errcode = errcode
        self.error = message
        self.room_version = room_version
        """The room's version, if the error is about it."""
        self.retry_after_ms = retry_after_ms
        """When to try again, if there were too many requests."""


class MatrixError(HomeserverError):
    """An error answer to a request: ``status`` and a body ``{"errcode", "error", **extra}``."""

    status: int = 400
    errcode: str = "M_UNKNOWN"
    text: ClassVar[str] = "The request could not be carried out"

    def __init__(self, message: str | None = None, **extra: Any) -> None:
        super().__init__(message or self.text)
        self.message = message or self.text
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """The JSON object that the client gets."""
        return {"errcode": self.errcode, "error": self.message, **self.extra}


class NotJson(MatrixError):
    """The body is no JSON."""

    errcode = "M_NOT_JSON"
    text = "The request body is not valid JSON"


class BadJson(MatrixError):
    """The body is JSON, but not what the endpoint expects."""

    errcode = "M_BAD_JSON"
    text = "The request body does not have the expected shape"


class MissingParam(MatrixError):
    """A required parameter is missing."""

    errcode = "M_MISSING_PARAM"
    text = "A required parameter is missing"


class InvalidParam(MatrixError):
    """A parameter has an impossible value."""

    errcode = "M_INVALID_PARAM"
    text = "A parameter has an invalid value"


class UnknownError(MatrixError):
    """A 400 for which there is no better code."""


class UnknownPos(MatrixError):
    """A sync or pagination token that this server did not issue."""

    errcode = "M_UNKNOWN_POS"
    text = "The position is not known"


class Conflict(MatrixError):
    """Another request changed the same thing first, or it is not in the state that this request needs."""

    status = 409
    errcode = "M_BAD_STATE"
    text = "The state changed in the meantime"


class LosingPrivileges(MatrixError):
    """Users would lower their own role, and have not confirmed it."""

    status = 409
    errcode = "HOMESERVER_LOSING_PRIVILEGES"
    text = "You are lowering your own role: only another owner can give it back. Confirm if you mean it."


class InvalidRoomState(MatrixError):
    """createRoom was asked for an impossible initial state."""

    errcode = "M_INVALID_ROOM_STATE"
    text = "The initial state implied by the parameters is invalid"


class UnsupportedRoomVersion(MatrixError):
    """This server does not know the room version."""

    errcode = "M_UNSUPPORTED_ROOM_VERSION"
    text = "This server does not support that room version"


class IncompatibleRoomVersion(MatrixError):
    """The requesting server does not support the room's version."""

    errcode = "M_INCOMPATIBLE_ROOM_VERSION"
    text = "The room has a version that is not supported"


class UnableToAuthoriseJoin(MatrixError):
    """No condition of a restricted room could be checked here."""

    errcode = "M_UNABLE_TO_AUTHORISE_JOIN"
    text = "This server cannot check the conditions for joining"


class UnableToGrantJoin(MatrixError):
    """A condition of a restricted room is met, but no user of this server may authorise the join."""

    errcode = "M_UNABLE_TO_GRANT_JOIN"
    text = "No user on this server can authorise the join"


class RoomInUse(MatrixError):
    """The alias for a new room is taken."""

    errcode = "M_ROOM_IN_USE"
    text = "The room alias is already taken"


class AliasInUse(RoomInUse):
    """The alias for a room is taken. (M_ROOM_IN_USE is for createRoom only.)"""

    status = 409
    errcode = "M_UNKNOWN"


class UserInUse(MatrixError):
    """The user name is taken."""

    errcode = "M_USER_IN_USE"
    text = "The user ID is already taken"


class InvalidUsername(MatrixError):
    """The user name does not fit the grammar."""

    errcode = "M_INVALID_USERNAME"
    text = "The user name is not valid"


class WeakPassword(MatrixError):
    """The password does not meet the policy."""

    errcode = "M_WEAK_PASSWORD"
    text = "The password is too weak"


class ProfileTooLarge(MatrixError):
    """The profile would exceed its limit."""

    errcode = "M_PROFILE_TOO_LARGE"
    text = "The profile may have 64 KiB"


class KeyTooLarge(MatrixError):
    """The name of a profile field is too long."""

    errcode = "M_KEY_TOO_LARGE"
    text = "The name of a profile field may have 255 bytes"


class BadAlias(MatrixError):
    """An alias in m.room.canonical_alias does not point to the room."""

    errcode = "M_BAD_ALIAS"
    text = "The alias does not point to this room"


class MissingToken(MatrixError):
    """No access token was given."""

    status = 401
    errcode = "M_MISSING_TOKEN"
    text = "Missing access token"


class UnknownToken(MatrixError):
    """The access token is unknown or no longer valid."""

    status = 401
    errcode = "M_UNKNOWN_TOKEN"
    text = "Unknown access token"


class InteractiveAuthenticationRequired(MatrixError):
    """More stages of user-interactive authentication are needed; ``extra`` says which, ``failure`` what went wrong.

    https://spec.matrix.org/v1.19/client-server-api/#user-interactive-api-in-the-rest-api
    """

    status = 401
    text = "Authentication is required"

    def __init__(self, failure: MatrixError | None = None, **extra: Any) -> None:
        super().__init__(None, **extra)
        self.failure = failure

    def body(self) -> dict[str, Any]:
        """The required stages; with a code and a text only if an attempt failed."""
        return {**(self.failure.body() if self.failure else {}), **self.extra}


class Unauthorized(MatrixError):
    """A federation request without a valid signature."""

    status = 401
    errcode = "M_UNAUTHORIZED"
    text = "The request is not properly signed"


class Forbidden(MatrixError):
    """The user or server may not do this."""

    status = 403
    errcode = "M_FORBIDDEN"
    text = "You are not allowed to do this"


class BadState(Forbidden):
    """The room or the membership is not in the state that this needs, such as an unban of a user who is not banned."""

    errcode = "M_BAD_STATE"
    text = "The state of the room does not allow this"


class NotRecommended(Forbidden):
    """The room's policy server refuses an event; status, code and text are those of its answer.

    https://spec.matrix.org/v1.19/server-server-api/#validating-policy-server-signatures
    """

    text = "The policy server of the room does not let this pass"

    def __init__(self, status: int, errcode: str, message: str) -> None:
        super().__init__(message or None)
        self.status = status
        self.errcode = errcode


class RefusedElsewhere(MatrixError):
    """Another server refuses a request of our user; status, code and text are those of its answer."""

    text = "The other server refuses this"

    def __init__(self, status: int, errcode: str, message: str) -> None:
        super().__init__(message or None)
        self.status = status
        self.errcode = errcode


class Exclusive(MatrixError):
    """The identifier belongs to an application service."""

    errcode = "M_EXCLUSIVE"
    text = "The identifier is reserved"


class InviteBlocked(MatrixError):
    """The invited user does not accept such invitations."""

    status = 403
    errcode = "M_INVITE_BLOCKED"
    text = "The user does not accept invitations"


class CannotLeaveServerNoticeRoom(MatrixError):
    """Leaving the server notices room is refused."""

    status = 403
    errcode = "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM"
    text = "You cannot leave this room"


class NotFound(MatrixError):
    """It does not exist, or the requester may not know that it does."""

    status = 404
    errcode = "M_NOT_FOUND"
    text = "Not found"


class Unrecognized(MatrixError):
    """An endpoint that this server does not have."""

    status = 404
    errcode = "M_UNRECOGNIZED"
    text = "Unrecognized request"


class MethodNotAllowed(MatrixError):
    """This server has the endpoint, but not with this method."""

    status = 405
    errcode = "M_UNRECOGNIZED"
    text = "Unrecognized request method"


class ManagedByServer(MatrixError):
    """Account data of a type that only the server sets."""

    status = 405
    errcode = "M_BAD_JSON"
    text = "This account data is managed by the server"


class TooLarge(MatrixError):
    """A body or an event exceeds its limit."""

    status = 413
    errcode = "M_TOO_LARGE"
    text = "The request or event is too large"


class TooSlow(MatrixError):
    """The body of a request did not arrive in time."""

    status = 408
    text = "The request body did not arrive in time"


class LimitExceeded(MatrixError):
    """Too many requests; ``retry_after_ms`` says when to come back."""

    status = 429
    errcode = "M_LIMIT_EXCEEDED"
    text = "Too many requests"


class RemoteFailed(MatrixError):
    """A server that this request depends on could not be reached, or its answer was invalid."""

    status = 502
    errcode = "M_UNKNOWN"
    text = "The other server could not be reached"


class RemoteTimedOut(MatrixError):
    """A server that this request depends on did not answer in time."""

    status = 504
    errcode = "M_UNKNOWN"
    text = "The other server did not answer in time"
