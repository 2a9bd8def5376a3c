"""The rule for m.room.redaction in room versions 1 and 2, and when a redaction takes effect in the later ones."""

from __future__ import annotations

from homeserver.errors import NotAuthorized
from homeserver.protocol.events import Event
from homeserver.protocol.power_levels import PowerLevels


def check_redaction(event: Event, levels: PowerLevels) -> None:
    """Rule 11 of https://spec.matrix.org/v1.19/rooms/v1/#authorisation-rules. Raises ``NotAuthorized``."""
    # If the sender's power level is greater than or equal to the redact level, allow.
    if levels.of_user(event.sender) >= levels.redact:
        return
    # If the domain of the event_id of the event being redacted is the same as the domain of the event_id of the
    # m.room.redaction, allow.
    target = event.redacts
    if target is not None and target.partition(":")[2] == event.event_id.partition(":")[2]:
        return
    # Otherwise, reject.
    raise NotAuthorized("the sender may not redact events of other servers")


def redaction_applies(redaction: Event, target: Event, levels: PowerLevels) -> bool:
    """Whether an accepted redaction takes effect on its target, given the power levels before the redaction.

    In room versions 1 and 2 the authorization rules have decided this; in later ones it is decided once both events are
    known. https://spec.matrix.org/v1.19/rooms/v3/#handling-redactions
    """
    if redaction.room_id != target.room_id:
        return False
    if redaction.version.redaction_rule:
        return True
    # The power level of the redaction event's sender is greater than or equal to the redact level.
    # The domain of the redaction event's sender matches that of the original event's sender.
    return levels.of_user(redaction.sender) >= levels.redact or redaction.sender_domain == target.sender_domain
