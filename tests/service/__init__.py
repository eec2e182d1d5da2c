"""Tests of `shiftergw.service`."""
