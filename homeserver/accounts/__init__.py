"""The accounts of this server: authentication, and the data that users keep here.

``registration`` creates accounts and ``login`` authenticates their owners; both start ``sessions``, a device with its
tokens. ``access_tokens`` finds the user and device of a request. ``user_interactive`` asks for more proof where a token
is not enough, ``passwords`` hashes and checks passwords. ``profiles`` is what others see of a user; ``account_data``
and ``filters`` are what only the user's own clients see. ``administration`` is for operators.
"""
