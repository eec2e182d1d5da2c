"""What the OCI formats mean: bytes and values, no Twisted, no sockets, no clocks."""
