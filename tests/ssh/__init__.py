"""Tests of `shiftergw.ssh`."""
