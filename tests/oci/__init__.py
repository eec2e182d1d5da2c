"""Tests of `shiftergw.oci`."""
