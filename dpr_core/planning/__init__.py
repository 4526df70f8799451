"""Resource estimates by arithmetic alone: memory by part, FLOPs, hours, and the nearest settings that fit."""
