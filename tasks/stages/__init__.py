"""The bodies of the stages, one a file."""
