"""The life of a stage run: its interface, working folder, graceful shutdown and progress."""
