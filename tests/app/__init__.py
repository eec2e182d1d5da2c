"""Tests of `shiftergw.app`."""
