"""The attacks, a module per subject. Every module here is found by itself."""
