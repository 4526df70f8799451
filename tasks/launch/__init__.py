"""SPMD: a stage that several processes run together. Each is a rank, and rank 0 owns the stage."""
