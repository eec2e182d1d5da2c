"""Tests of the conversion to squashfs."""
