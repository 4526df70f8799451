"""Rollout engines: sampling responses from a policy, in process or from a vLLM server."""
