"""The life of rooms and of the events in them.

``send`` makes events of what our users say, ``receive`` checks what other servers send; both end in ``append``, the one
door into the event graph. ``state`` knows what a room looks like now and what it looked like then, ``events`` keeps
recent events at hand. The other modules are subjects: creation, membership, history, receipts ...
"""
