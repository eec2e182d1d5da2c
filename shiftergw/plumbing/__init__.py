"""Twisted plumbing that knows nothing about images."""
