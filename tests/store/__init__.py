"""Tests of `shiftergw.store`."""
