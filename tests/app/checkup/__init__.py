"""Tests of `shiftergw.app.checkup`."""
