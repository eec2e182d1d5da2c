"""Uploads: files that users send to the gateway to have images made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

UploadKind = Literal["", "oci-archive", "docker-archive", "dir-archive", "sif", "squashfs"]
"""The kinds of files that images are made of; with "" the content of a file shows its kind."""

UPLOAD_KINDS: frozenset[str] = frozenset(get_args(UploadKind))

CHUNK_LIMIT = 16 << 20
"""Bytes of the longest chunk of an upload."""

UPLOAD_ID = re.compile("[0-9a-f]{32}")
"""The form of the id of an upload. Ids become names of files: check each id that is received."""

SHA256 = re.compile("[0-9a-f]{64}")
"""The form of a SHA-256 digest in hexadecimal."""

SELECTOR_LIMIT = 512
"""Characters of a selector, which names one of the images in an archive."""


@dataclass(frozen=True, slots=True)
class UploadDeclaration:
    """What a user declares before an upload: its size in bytes, its SHA-256 and its kind.

    `filename` is the name of the file on the user's machine, for messages only.
    """

    system: str
    uid: int
    size: int
    sha256: str
    kind: str = ""
    filename: str = ""

    def is_same_upload(self, declaration: UploadDeclaration) -> bool:
        """Return whether two declarations mean the same upload, so that it can be resumed."""
        return self._identity == declaration._identity

    @property
    def _identity(self) -> tuple[object, ...]:
        return self.system, self.uid, self.size, self.sha256, self.kind


@dataclass(frozen=True, slots=True)
class UserUpload:
    """An upload of which `offset` bytes have arrived.

    `last_write` is the time of the last change, and `pulls` are the keys of the records of pulls of
    this upload, the last one at the end; some of them may have ended.
    """

    id: str
    declaration: UploadDeclaration
    offset: int = 0
    last_write: float = 0
    pulls: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Return whether all bytes have arrived; their digest has not been checked."""
        return self.offset == self.declaration.size


def data_file(upload_id: str) -> str:
    """Return the name of the file with the bytes of an upload; raise `ValueError` for no id."""
    if UPLOAD_ID.fullmatch(upload_id) is None:
        raise ValueError("not the id of an upload")
    return f"{upload_id}.data"


def state_file(upload_id: str) -> str:
    """Return the name of the file with the state of an upload."""
    return f"{data_file(upload_id).removesuffix('.data')}.json"


@dataclass(frozen=True, slots=True)
class UploadChoice:
    """What a pull makes of an upload: which of its images, and whether everybody may use it."""

    id: str
    selector: str = ""
    public: bool = False


@dataclass(frozen=True, slots=True)
class ImageFile:
    """The file that an image is made of.

    It is an upload with this `id`, `size` and `sha256`; or, for an import, the file at `path` as
    the user named `user` may read it, and the others are empty.
    """

    id: str = ""
    kind: str = ""
    size: int = 0
    sha256: str = ""
    selector: str = ""
    public: bool = False
    path: str = ""
    user: str = ""

    def is_same_file(self, file: ImageFile | None) -> bool:
        """Return whether both are the same image of one upload or path, and as public."""
        return file is not None and (self.id, self.path, self.selector, self.public) == (
            file.id,
            file.path,
            file.selector,
            file.public,
        )

    def has_same_content(self, file: ImageFile) -> bool:
        """Return whether both have the same bytes, make the same image, and are equally public."""
        return bool(self.sha256) and self._content == file._content

    @property
    def _content(self) -> tuple[object, ...]:
        return self.kind, self.size, self.sha256, self.selector, self.public
