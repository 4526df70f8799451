"""The embedded default: demonstrations written by a program, and tiny backbones that can learn from them."""
