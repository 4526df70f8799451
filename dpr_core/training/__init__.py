"""The machinery that every method shares: one optimizer step, scoring, the on-policy loop, guards."""
