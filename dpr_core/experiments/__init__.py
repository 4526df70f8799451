"""Many pipelines side by side: what was seen, what the paper claims of it, and the verdicts."""
