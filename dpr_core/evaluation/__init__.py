"""LLM-as-a-judge: benchmarks, pairwise win rates, ratings, and official scores."""
