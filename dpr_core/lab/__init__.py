"""The built-in lab: synthetic tasks with verifiable results, and tiny networks that can learn them."""
