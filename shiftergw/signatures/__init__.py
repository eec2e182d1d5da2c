"""Verify signatures of images: bytes and keys go in, verified claims come out."""
