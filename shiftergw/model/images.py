"""Frozen values that describe images: digests, descriptors, layers, converted files.

The rules of the formats are in `shiftergw.oci`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

from shiftergw.errors import BadRequest, printable
from shiftergw.model.packed_data import PackedData

_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_DIGEST = re.compile(r"(sha256|sha384|sha512):([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Digest:
    """A content digest (OCI image-spec, "Descriptors", section "Digests")."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse `sha256:<64 hex>` (or sha384, sha512); raise `BadRequest` for anything else."""
        match = _DIGEST.fullmatch(text) if isinstance(text, str) else None
        if match is None or len(match[2]) != _DIGEST_LENGTHS[match[1]]:
            raise BadRequest(
                f"{printable(str(text))!r} is not a digest.",
                remedy="A digest is `sha256:` and 64 hexadecimal digits.",
            )
        return cls(match[1], match[2])

    @classmethod
    def of(cls, content: bytes) -> Digest:
        """Return the SHA-256 digest of `content`."""
        return cls("sha256", hashlib.sha256(content).hexdigest())

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class Platform:
    """The platform of an image: Linux, an architecture, and perhaps a variant such as `v8`."""

    architecture: str = "amd64"
    variant: str = ""
    os: str = "linux"

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse `amd64` or `arm64/v8`; raise `ValueError` for anything else."""
        match = re.fullmatch(r"([a-z0-9_]+)(?:/(v[0-9]+))?", text)
        if match is None:
            raise ValueError(f"{text!r} is not an architecture such as `amd64` or `arm64/v8`")
        return cls(match[1], match[2] or "")

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.architecture}/{self.variant}" if self.variant else self.architecture


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A manifest's description of a blob: digest, size in bytes, and media type."""

    digest: Digest
    size: int
    media_type: str = ""
    has_urls: bool = field(default=False, compare=False)
    """Whether the manifest lists URLs outside the registry. The gateway never requests them."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The parts of an image's configuration that a runtime reads, and the layers' `diff_ids`.

    `created` is in seconds since 1970; 0 if the configuration has no usable date.
    """

    architecture: str = ""
    os: str = ""
    created: int = 0
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    workdir: str = ""
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    diff_ids: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """The image that a reference named at the time of its resolution.

    `digest` is that of the manifest chosen for the platform; its hex is the image id.
    `source_digest` is the digest of the document that the tag names: an index, or the manifest
    itself. `private` means that the registry required the user's own login. `source_kind` is the
    `remotetype` of the source, as its record has it. `mirror` is the host of the mirror that served
    the manifest, if it was not the location itself.
    """

    digest: Digest
    source_digest: Digest
    config_blob: Descriptor
    layers: tuple[Descriptor, ...]
    location: str
    repository: str
    private: bool = False
    source_kind: str = "dockerv2"
    mirror: str = ""

    @property
    def id(self) -> str:
        """Return the image id: 64 hexadecimal digits."""
        return self.digest.hex

    @property
    def download_size(self) -> int:
        """Return the total bytes of the distinct layer blobs."""
        return sum({layer.digest: layer.size for layer in self.layers}.values())


Opening = Callable[[Event], BinaryIO]
"""Opens a blob for reading from its first byte, in a thread that ends soon after the event is set.

The blob may still be arriving. A read then waits for the next bytes, and the end of the file is
reported only after the whole blob has arrived and has its digest. If the download fails for good, a
read raises `BlobCorrupt`.
"""


@dataclass(frozen=True, slots=True)
class LayerFile:
    """A compressed layer in the cache, and the digest of its uncompressed bytes.

    Without `diff_id` (old manifests have none) the uncompressed bytes are not verified.
    """

    path: Path
    diff_id: Digest | None = None


@dataclass(slots=True)
class ContentReport:
    """How many entries of an image are in the squashfs, and how many were dropped or changed."""

    entries: int = 0
    size: int = 0
    """Bytes of all regular files; each inode counts once."""
    devices: int = 0
    """Device nodes, FIFOs and sockets, dropped."""
    under_dev: int = 0
    """Entries below `dev/`, dropped."""
    setuid: int = 0
    """Entries whose setuid or setgid bit was dropped."""
    xattrs: int = 0
    """Entries whose extended attributes were dropped."""
    modes: int = 0
    """Entries that were made readable for the site's users."""

    def to_document(self) -> dict[str, Any]:
        """Return the counts as a JSON object."""
        return asdict(self)


REPORT_COUNTS = tuple(f.name for f in fields(ContentReport))
"""The names of the counts, also in documents."""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """A converted file that was verified against its plan and is ready for delivery.

    `size` is in bytes; `seconds` maps the name of each stage to its wall time. `data` says which
    ranges are data of layer packs; a file that was converted as a whole has none.
    """

    path: Path
    size: int
    sha256: str
    report: ContentReport
    seconds: dict[str, float] = field(default_factory=dict)
    data: PackedData = field(default_factory=PackedData)
