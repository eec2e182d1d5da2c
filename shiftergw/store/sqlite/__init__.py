"""Images and work in one SQLite file."""
