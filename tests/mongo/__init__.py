"""Tests of `shiftergw.mongo`."""
