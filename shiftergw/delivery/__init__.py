"""Deliver images into the image directories of systems: local, over SFTP, over SCP."""
