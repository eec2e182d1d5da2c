"""Decisions as pure functions of values."""
