"""Tests of `shiftergw.cache`."""
