"""Identify the callers of the gateway: munge credentials, user and group names."""
