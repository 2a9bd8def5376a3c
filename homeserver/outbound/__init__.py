"""The one HTTP client: requests to other hosts, bounded in bytes and time, and never to private addresses.

``http`` makes requests, ``connections`` keeps connections, ``places`` bounds how many run at once, ``dns`` resolves
names, ``addresses`` says which addresses may be connected to.
"""
