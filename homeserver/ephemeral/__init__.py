"""Data of rooms that is not in their events: receipts, typing notices, and who has read which event."""
