"""Ways to carry record keys to workers."""
