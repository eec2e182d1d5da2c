"""The SQLite store by itself."""
