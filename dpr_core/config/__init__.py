"""Settings as pydantic models, importable without torch."""
