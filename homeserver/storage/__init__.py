"""All SQL. ``tables`` is the schema, ``database`` opens transactions, and every subject has a store of its own.

A store is a module of functions that take a ``Connection`` and are named for the question they answer. They never
commit: who opens the transaction (``Database.read`` or ``Database.write``) says what belongs together.
"""
