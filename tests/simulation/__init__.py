"""A simulator of several whole servers in one process: see README.md."""
