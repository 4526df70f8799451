"""What surrounds the body of a stage while it runs."""
