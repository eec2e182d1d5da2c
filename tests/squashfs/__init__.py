"""Tests of the squashfs format."""
