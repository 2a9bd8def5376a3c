"""The rule for m.room.aliases, in room versions 1 to 5.

https://spec.matrix.org/v1.19/rooms/v5/#authorisation-rules
"""

from __future__ import annotations

from homeserver.errors import NotAuthorized
from homeserver.protocol.events import Event


def check_aliases(event: Event) -> None:
    """A server may set only its own aliases, whoever the sender is. Raises ``NotAuthorized``."""
    # If event has no state_key, reject.
    if event.state_key is None:
        raise NotAuthorized("aliases must be a state event")
    # If sender's domain doesn't match state_key, reject.
    if event.state_key != event.sender_domain:
        raise NotAuthorized("aliases may be set for the sender's own server only")
    # Otherwise, allow.
