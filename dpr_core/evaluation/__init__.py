"""Asking questions of policies, and judging, rating and scoring the answers."""
