"""Registries and the cache of their blobs."""
