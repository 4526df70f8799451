"""Dense-Path REINFORCE as a library: the method, without any orchestration."""

__version__ = "0.1.0"
