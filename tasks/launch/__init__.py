"""A stage that several processes do together."""
