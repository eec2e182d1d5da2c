"""Tell which file systems have locks that hold on all machines."""

from __future__ import annotations

from shiftergw.errors import ConfigurationError

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "cifs", "smb3", "smbfs", "beegfs", "ceph", "fuse.sshfs",
     "9p", "afs", "panfs", "pvfs2", "orangefs", "wekafs", "glusterfs", "fuse.glusterfs", "ocfs2",
     "gfs2"}
)  # fmt: skip


def lock_trouble(kind: str, options: frozenset[str]) -> str | None:
    """Return why locks (`flock`) on a file system do not exclude other machines; None if they do.

    `kind` is the type of the file system, `options` are its mount options. A file system that is
    not shared by machines has no trouble.
    """
    if kind in {"nfs", "nfs4"} and options & {"nolock", "local_lock=flock", "local_lock=all"}:
        return "it is mounted with nolock or local_lock: its locks hold on this machine only"
    if kind == "lustre" and "flock" not in options:
        return "it is mounted without flock: its locks fail, or hold on this machine only"
    return None


def check_state_file_system(kind: str) -> None:
    """Raise `ConfigurationError` if `kind`, that of StateDirectory, is a network file system."""
    if kind in NETWORK_FILE_SYSTEMS:
        raise ConfigurationError(
            f"StateDirectory: it is on a network file system ({kind}), where SQLite's locks are"
            " not reliable.",
            remedy="Set it to a directory on a disk of this machine.",
        )
