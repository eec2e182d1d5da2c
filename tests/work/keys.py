"""The keys of the records that test jobs work on."""

from __future__ import annotations


def key_of(name: str) -> str:
    """Return a record's key, 24 hex digits like all keys; its text is an order to the worker."""
    return name.ljust(12).encode().hex()
