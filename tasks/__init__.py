"""Stages as Prefect tasks over an artifact store: config and artifact IDs in, an artifact ID out."""
