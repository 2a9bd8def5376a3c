"""Speaking to other servers.

A request to another server goes down this ladder, each step in its own module: ``client`` knows the requests of the
federation API; ``permitted_servers`` says whom we speak to; ``request_authentication`` signs; ``server_discovery``
turns the server's name into a place to connect to, with the help of ``well_known``; and the process-wide
``outbound_http`` connects.

What comes from another server is believed for its signatures: ``key_ring`` gets the keys of servers, from the memory,
the database, the servers themselves or notaries, after ``server_keys`` has checked them, and verifies events with
them; ``request_authentication`` verifies requests.

https://spec.matrix.org/v1.19/server-server-api/
"""
