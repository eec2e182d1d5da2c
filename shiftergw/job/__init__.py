"""The jobs of a worker process: pull an image, change its access list, remove its files."""
