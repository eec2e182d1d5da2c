"""The promises of what speaks to registries and keeps their blobs."""
