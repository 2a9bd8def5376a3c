"""Whether an event is allowed: checks 4, 5 and 6 on receipt of a PDU, and the same for events of our own users.

``auth_event_keys`` says which part of the state an event must cite, ``check_auth_events`` judges what it did cite, and
``authorize`` judges the event against a state: that of its auth events (check 4), the state before it (check 5), or the
current one (check 6). All raise ``NotAuthorized`` with the reason in its text.

The rules differ between room versions by a few clauses; the clauses ask the version's flags. Comments quote the
sentences of https://spec.matrix.org/v1.19/rooms/v12/#authorisation-rules (or of the last version that has the rule),
each above the line that does it. One module per event type; ``rules`` holds the sequence.
"""

from homeserver.protocol.authorization.auth_events import auth_event_keys, check_auth_events
from homeserver.protocol.authorization.redaction import redaction_applies
from homeserver.protocol.authorization.rules import authorize

__all__ = ["auth_event_keys", "authorize", "check_auth_events", "redaction_applies"]
