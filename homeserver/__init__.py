"""A Matrix homeserver for governed collaboration across organisations."""

__version__ = "0.1.0"
