"""Tests of `shiftergw.rules`."""
