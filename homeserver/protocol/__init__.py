"""The rules of Matrix: pure functions over frozen data, without I/O, clock or globals.

A PDU from the network goes through ``event_format`` (check 1), ``signatures`` (2), ``hashes`` (3) and ``authorization``
(4 to 6). Where branches of the event graph meet, ``state_resolution`` computes the state. ``room_versions`` holds
everything that differs between room versions, as data.
"""
