"""Tests of `shiftergw.work.celery`."""
