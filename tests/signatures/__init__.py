"""Tests of `shiftergw.signatures`."""
