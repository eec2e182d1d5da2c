"""A directory for `PYTHONPATH`: its `sitecustomize` notes what a program names."""
