"""Sources of images: registries, and files and directories of users and sites."""
