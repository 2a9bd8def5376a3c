"""Speaking to other servers.

A request to another server passes through these modules: ``client`` has a method for each request of the federation
API; ``permitted_servers`` says which servers the administrator allows; ``request_authentication`` signs;
``server_discovery`` turns the server's name into a destination to connect to, with the help of ``well_known``; and
``outbound.http``, shared by the whole process, connects.

Data from another server is trusted because of its signatures: ``key_ring`` gets the keys of servers from memory, the
database, the servers themselves or notaries, after ``server_keys`` has checked them, and verifies events with them;
``request_authentication`` verifies requests.

https://spec.matrix.org/v1.19/server-server-api/
"""
