"""What happens in rooms without being an event: receipts and typing, and who has read what."""
