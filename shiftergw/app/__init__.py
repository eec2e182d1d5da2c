"""The configuration and the parts, wired; what starts a process."""
