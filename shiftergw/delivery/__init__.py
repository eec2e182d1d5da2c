"""Image directories, here and far."""
