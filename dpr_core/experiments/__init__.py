"""Many pipelines side by side: observations, the paper's claims about them, and the verdicts."""
