"""Tests of `shiftergw check`."""
