"""What may be seen of a room, by our users and by other servers.

``history`` pages through a room's events, ``state_and_members`` reads its state, ``visible_events`` decides what a user
may see of it, ``client_events`` serialises events for clients, ``shared_history`` answers other servers.
"""
