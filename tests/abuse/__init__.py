"""Attacks on a real server process, while an innocent user goes on; see README.md."""
