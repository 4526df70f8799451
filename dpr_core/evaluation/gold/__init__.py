"""Gold measures: what a program can tell of an answer, or of a held-out response, without a judge."""
