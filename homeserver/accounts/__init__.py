"""The accounts of this server: who somebody is, and what they keep here.

``registration`` makes accounts, ``login`` lets their owners in; both start ``sessions``, a device with its tokens.
``access_tokens`` says for whom a request acts. ``user_interactive`` asks for more proof where a token is not enough,
``passwords`` keeps and checks secrets. ``profiles`` is what others see of a user; ``account_data`` and ``filters`` are
what only the user's own clients see. ``administration`` is for those who run the server.
"""
