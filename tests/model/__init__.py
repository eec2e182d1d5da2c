"""Tests of `shiftergw.model`."""
