"""Images and work in a database of MongoDB."""
