"""Tests of `shiftergw.job`."""
