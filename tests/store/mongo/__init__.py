"""The MongoDB store by itself."""
