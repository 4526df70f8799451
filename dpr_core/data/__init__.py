"""Demonstrations: sources, sampling, prompt template, tokenization and batching."""
