"""The project's own, small benchmark of the paths that matter.

    python -m benchmarks                             # starts a server of its own on SQLite
    python -m benchmarks --only send_one_room,fanout --seconds 5
    python -m benchmarks --base-url http://localhost:8008 --pid 4711

It prints rates, latencies, and the CPU time that the server used for each event: the figure to trust most on a machine
that does other things as well. ``paths`` holds what is measured, ``measuring`` how, ``http`` a cheap client.
"""
