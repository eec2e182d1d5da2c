"""What the gateway says about images themselves: digests, descriptors, layers, squashfs options.

Plain frozen values. The rules of the formats live in `shiftergw.oci`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

from shiftergw.errors import BadRequest, printable

_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_LAYERS = 3
"""Size of all layers together, as a multiple of the finished image."""

RATIO_FREE = 8 * 10**9
"""Bytes that the layers of an image may unpack to, however small they are compressed."""

_HEADERS = 1 << 20
_HEADERS_PER_ENTRY = 8192
"""Bytes of headers and padding that layers may have, and each entry more on average."""

_DIGEST = re.compile(r"(sha256|sha384|sha512):([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Digest:
    """A content digest, as the OCI image specification's descriptor grammar has it."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read `sha256:<64 hex>` (or sha384, sha512); raise `BadRequest` for anything else."""
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
        """Return the canonical text."""
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on: Linux always, an architecture, perhaps a variant of it."""

    architecture: str = "amd64"
    variant: str = ""
    os: str = "linux"

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read `amd64` or `arm64/v8`; raise `ValueError` for anything else."""
        match = re.fullmatch(r"([a-z0-9_]+)(?:/(v[0-9]+))?", text)
        if match is None:
            raise ValueError(f"{text!r} is not an architecture such as `amd64` or `arm64/v8`")
        return cls(match[1], match[2] or "")

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.architecture}/{self.variant}" if self.variant else self.architecture


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest says of a blob: its digest, its size in bytes, its media type."""

    digest: Digest
    size: int
    media_type: str = ""
    has_urls: bool = field(default=False, compare=False)
    """Whether the manifest names addresses outside of the registry; none of them is asked."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The parts of an image's configuration that a runtime reads, and the layers' `diff_ids`.

    `created` is in seconds since 1970, 0 where the image does not say.
    """

    architecture: str = ""
    os: str = ""
    created: int = 0
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    workdir: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    diff_ids: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """What a reference meant at the moment it was resolved.

    `digest` is that of the manifest chosen for the platform: its hex is the image id.
    `source_digest` is what the tag answered, an index or the manifest itself.
    `private` says that the registry wanted the user's own login.
    """

    digest: Digest
    source_digest: Digest
    config_blob: Descriptor
    layers: tuple[Descriptor, ...]
    location: str
    repository: str
    private: bool = False

    @property
    def id(self) -> str:
        """Return the image id: 64 hexadecimal digits."""
        return self.digest.hex

    @property
    def download_size(self) -> int:
        """Return the bytes of all distinct layer blobs."""
        return sum({layer.digest: layer.size for layer in self.layers}.values())


Opening = Callable[[Event], BinaryIO]
"""Opens a blob for a thread that reads it from its beginning, and may be told to stop.

A blob may still be on its way: a read then waits for the next bytes, and no byte follows the last
before the whole is there and has its digest. Where it comes to nothing a read raises `BlobCorrupt`.
"""


@dataclass(frozen=True, slots=True)
class LayerFile:
    """A layer that lies in the cache: compressed as it came, with what it must unpack to.

    Without `diff_id` (old manifests have none) the uncompressed bytes are not checked.
    """

    path: Path
    diff_id: Digest | None = None


@dataclass(frozen=True, slots=True)
class SquashOptions:
    """How `mksquashfs` is to compress; `extra` are raw arguments, appended last.

    `processors` 0 leaves the number to `mksquashfs`; `level` None to the compressor.
    """

    compressor: str = "gzip"
    level: int | None = 5
    block_size: str = "128K"
    memory: str = "512M"
    processors: int = 0
    keep_setuid: bool = False
    extra: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return a short text that differs whenever the options give other bytes."""
        shaping = {k: v for k, v in asdict(self).items() if k not in {"memory", "processors"}}
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class StageLimits:
    """Seconds that each stage of one image may take."""

    fetch: float = 12 * 3600
    examination: float = 3600
    conversion: float = 6 * 3600
    transfer: float = 12 * 3600


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """What an image may unpack to, and what its layers may cost on the way.

    `size` (bytes of all files) and `entries` are of the finished image; `layers_size` (unpacked
    bytes, headers included), `layers_entries`, `names_size` (bytes) and `path_steps` of all its
    layers together, a layer that stands there several times counted as often. Beyond `RATIO_FREE`
    bytes the layers unpack to at most `ratio` times what all of them take compressed.
    """

    size: int = 200 * 10**9
    entries: int = 5_000_000
    layers: int = 500
    layers_size: int | None = None
    layers_entries: int | None = None
    ratio: int = 200
    names_size: int = 512 * 10**6
    path_steps: int = 20_000_000
    stages: StageLimits = StageLimits()

    @property
    def all_size(self) -> int:
        """Return how much all layers may unpack to: three times the finished image if not set."""
        if self.layers_size is not None:
            return self.layers_size
        return _LAYERS * self.size + _HEADERS + self.all_entries * _HEADERS_PER_ENTRY

    @property
    def all_entries(self) -> int:
        """Return how many entries all layers may have: three times the finished image's if not set.

        Later layers replace what earlier ones hold.
        """
        return self.layers_entries or _LAYERS * self.entries


@dataclass(slots=True)
class ContentReport:
    """What of an image went into the squashfs and what did not; counts of entries."""

    entries: int = 0
    size: int = 0
    """Bytes of all regular files, each inode once."""
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


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """A converted file that was checked against its plan, ready for delivery.

    `size` in bytes; `seconds` maps a stage's name to the wall time it took.
    """

    path: Path
    size: int
    sha256: str
    report: ContentReport
    seconds: dict[str, float] = field(default_factory=dict)
