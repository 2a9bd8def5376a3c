"""All SQL. ``tables`` is the schema, ``database`` opens transactions, and every subject has its own store.

A store is a module of functions that take a ``Connection`` and are named for what they read or write. They never
commit: the caller that opens the transaction (``Database.read`` or ``Database.write``) decides what belongs together.
"""
