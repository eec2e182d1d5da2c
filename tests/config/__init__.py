"""Promises of the configuration."""
