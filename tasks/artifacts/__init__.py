"""Artifacts in MLflow: identity, manifests, runs, payloads."""
