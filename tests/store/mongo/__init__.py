"""Tests of `shiftergw.store.mongo`."""
