"""What a user may set. Nothing here imports torch."""
