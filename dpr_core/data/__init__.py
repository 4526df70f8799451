"""Demonstrations: where they come from, how they are rendered, encoded and batched."""
