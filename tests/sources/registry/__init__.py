"""Tests of `shiftergw.sources.registry`."""
