"""Check a file before its upload by the code with which a worker reads it later."""

from __future__ import annotations

from shiftergw.model.source_names import SourceKind
from shiftergw.sources.local.forms import check_head

_KINDS: dict[str, SourceKind] = {
    "": "path",
    "docker-archive": "docker-archive",
    "oci-archive": "oci-archive",
    "sif": "sif",
    "squashfs": "squashfs",
}
"""The kinds of files, by the names that uploads have for them."""


def check_file(head: bytes, kind: str) -> None:
    """Raise `ManifestInvalid` if a worker will find no image in a file that begins with `head`.

    `head` has at least `forms.HEAD_BYTES` of a longer file, and `kind` is that of the upload. A
    directory of skopeo's, which is sent as an archive, is not looked at.
    """
    if kind in _KINDS:
        check_head(head, _KINDS[kind])
