"""Container registries: OCI distribution-spec v1.1, "Pull"."""
