"""Tests of the files of users as sources."""
