"""The event graph: how an event gets into a room.

``send`` makes events for our users, ``receive`` checks events of other servers; both end in ``append``, which alone
writes to the event graph. ``state`` has the current and past states of rooms, ``events`` caches events. This package
does not decide who may see an event: ``reading`` does.
"""
