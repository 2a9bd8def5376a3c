"""The one HTTP client: requests to other hosts, bounded in bytes and time, and never to private addresses.

``http`` makes requests, ``connections`` keeps connections, ``addresses`` says which addresses may be connected to.
"""
