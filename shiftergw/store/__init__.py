"""The one truth about images and work."""
