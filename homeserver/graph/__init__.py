"""The event graph: how an event gets into a room.

``send`` makes events of what our users say, ``receive`` checks what other servers send; both end in ``append``, the one
door into the event graph. ``state`` knows what a room looks like now and what it looked like then, ``events`` keeps
recent events at hand. Nothing here knows who may see an event: that is ``reading``.
"""
