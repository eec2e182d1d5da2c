"""Tests of `shiftergw.build`."""
