"""What may be seen of a room, by our users and by other servers.

``history`` pages through a room, ``visible_events`` says what a user may see of it, ``client_events`` gives events the
form that clients get, ``shared_history`` answers other servers.
"""
