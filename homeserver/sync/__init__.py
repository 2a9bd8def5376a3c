"""What changed for this device since that position: ``/sync``.

A position in the one stream of the database says all that a client knows. ``service`` looks, answers or waits.
``recent_changes`` tells in memory what happened lately and to whom; for most requests, those of clients that wait, that
is enough, and ``quick`` answers from what is cached. Everything else (a first sync, a gap, a room that was joined or
left) is read from the database at one position by ``gathering``, with ``room_reading`` and ``room_states`` for the
rooms in it. Both make ``updates``, which ``rendering`` turns into bytes: of events that were serialised before.

https://spec.matrix.org/v1.19/client-server-api/#syncing
"""
