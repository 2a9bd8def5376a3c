"""What changed for this device since that position: ``/sync``.

A request is answered in three steps:

1. **Read the news**: what happened since the client's position, as plain facts, before any filter is applied
   (``news``). There are two readers. ``Quick`` takes the facts from memory, from the ``recent_changes`` that the
   notifier reported, and queries the database only for the parts that changed and are not in memory. ``Gathering``
   reads all of it from the database in one transaction (``room_reading``): for a first sync, for a client that was
   away for long, and when the user has joined or left a room.
2. **Compose the update** from the news (``composing``): apply filters, history visibility and limits. This code is the
   same for both readers, so both give the same answer for the same facts. tests/properties/test_sync_readers.py checks
   this.
3. **Render** the update (``rendering``) from events that were serialised before.

``service`` runs these steps and lets requests wait.

An answer is made of *sections*: the account data, invitations and knocks, and for each room its timeline, state,
members and summary, ephemeral events and account data. To add a section (to-device messages, say):

* ``updates``: give ``Update`` or ``RoomUpdate`` a field for what the client is sent, count it in ``says_something``,
  and serialise it in ``rendering``.
* ``news``: give ``News`` or ``RoomNews`` a field for the facts.
* ``room_reading``: read the facts since a position in ``read`` (and ``read_ongoing`` for what belongs to a room).
* ``quick``: take the facts from memory, or read just them when a change in their stream says that there are any. Data
  of a user needs a ``Stream`` of its own whose changes name the user: add it to ``recent_changes.USER_STREAMS`` and
  read it in ``room_reading.read_own``.
* ``composing``: turn the facts into the update.
* tests/properties: let the random history produce such facts.

https://spec.matrix.org/v1.19/client-server-api/#syncing
"""
