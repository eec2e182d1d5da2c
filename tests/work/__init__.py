"""Tests of `shiftergw.work`."""
