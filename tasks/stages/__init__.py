"""The stages, one body a file; `lineage`, `policies` and `judgments` are what bodies share or are made of."""
