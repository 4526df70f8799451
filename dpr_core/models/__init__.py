"""Backbones: loading, saving, and the module that turns tokens into scores."""
