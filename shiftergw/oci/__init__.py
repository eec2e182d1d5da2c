"""The OCI formats: parse and write bytes, without Twisted, sockets or clocks."""
