"""Tests of `shiftergw.sftp`."""
