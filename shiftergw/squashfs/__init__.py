"""The on-disk format squashfs 4.0: its metadata, read and written. Pure: no I/O of its own."""
