"""An image gateway for HPC: registry in, one verified squashfs file on every cluster out."""

__version__ = "1.0.0.dev0"
