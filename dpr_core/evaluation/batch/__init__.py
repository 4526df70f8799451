"""Judging through the Batch API."""
