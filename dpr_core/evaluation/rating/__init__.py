"""Single-answer ratings from 1 to 10."""
