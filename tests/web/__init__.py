"""Tests of `shiftergw.web`."""
