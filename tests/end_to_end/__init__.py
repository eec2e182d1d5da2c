"""The whole program against real parts: a registry, `mksquashfs`, processes that die."""
