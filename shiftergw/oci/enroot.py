"""The files in which enroot looks for the configuration of an image, as a layer above its own.

enroot runs squashfs files without any metadata beside them; what an image's configuration says is
in `/etc/rc`, `/etc/environment` and `/etc/fstab` (enroot, `doc/image-format.md`). pyxis writes into
`/etc/rc.local`, which `/etc/rc` reads, if the command of a job replaces that of the image.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from shiftergw.model.images import ImageConfig
from shiftergw.oci.header import END, header, padding

_VARIABLE = re.compile(r"(?!ENROOT_)[A-Za-z_][A-Za-z0-9_]*=[^\0\n]*")
"""A line that enroot takes for a variable; the names that begin with ENROOT_ are its own."""

_VOLUME = re.compile(r"(?:/[A-Za-z0-9_@%+=:,.-]+)+")
"""A path that needs no escapes in fstab(5)."""

_MODE = 0o644


def enroot_layer(config: ImageConfig) -> bytes | None:
    """Return a tar archive with the files for enroot; None if the configuration says nothing.

    An image without a configuration may have such files of its own, as one that enroot has made.
    Values that these files cannot represent are left out. The same configuration gives the same
    bytes.
    """
    if not (config.env or config.entrypoint or config.cmd or config.workdir or config.volumes):
        return None
    files = {
        b"etc/environment": _lines(filter(_VARIABLE.fullmatch, config.env)),
        b"etc/fstab": _lines(map(_mount, filter(_is_volume, config.volumes))),
        b"etc/rc": _script(config).encode(),
        b"etc/rc.local": b"",
    }
    members = (
        header(path, _MODE, 0, b"0", len(content)) + content + padding(len(content))
        for path, content in files.items()
    )
    return b"".join(members) + END


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _is_volume(path: str) -> bool:
    return _VOLUME.fullmatch(path) is not None and not {".", ".."}.intersection(path.split("/"))


def _mount(volume: str) -> str:
    """Return the line that mounts a directory of the container on itself, writable."""
    return f"${{ENROOT_ROOTFS}}{volume} {volume} none x-create=dir,bind,rw,nosuid,nodev"


def _script(config: ImageConfig) -> str:
    """Return the script that starts a container; its arguments replace the image's `Cmd`.

    It reads `/etc/rc.local` with these arguments, because that of pyxis runs them.
    """
    workdir = _shell_words([f"/{config.workdir.lstrip('/')}"]) or "/"
    entrypoint, cmd = _shell_words(config.entrypoint), _shell_words(config.cmd)
    if not entrypoint:
        cmd = cmd or "/bin/sh"
    return f"""\
# Written by shiftergw from the configuration of the image.
mkdir -p {workdir} 2> /dev/null
cd {workdir} || exit 1
unset OLDPWD
if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi
if [ "$#" -eq 0 ]; then
    set -- {cmd}
fi
exec {entrypoint} "$@"
"""


def _shell_words(words: Sequence[str]) -> str:
    """Return words for a shell; none if one of them cannot be an argument of a program."""
    return "" if any("\0" in word for word in words) else shlex.join(words)
