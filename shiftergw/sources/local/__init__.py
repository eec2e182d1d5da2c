"""Images in files and directories: OCI layouts, archives, SIF and squashfs files."""
