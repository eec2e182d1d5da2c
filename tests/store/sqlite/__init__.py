"""Tests of `shiftergw.store.sqlite`."""
