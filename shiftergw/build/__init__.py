"""From a planned tree to a checked squashfs file."""
