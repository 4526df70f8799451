"""What a run would need, by arithmetic alone: memory by part, operations, hours, and the nearest settings that fit."""
