"""Make container images: tars, blobs, manifests, OCI layouts.

Only the standard library and `zstandard` are used, since the data of tests must not come from the
program. The bytes of an image are always the same.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from shiftergw.model.images import Digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


def entry(name: str, content: bytes | None = None, **members: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return one entry for `tar_of`: a file with `content`, or a directory without.

    `members` are attributes of `TarInfo` (`mode`, `linkname`, `type`, ...).
    """
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
    info.mode = 0o755 if content is None else 0o644
    info.mtime = 1_700_000_000
    info.size = len(content or b"")
    for key, value in members.items():
        setattr(info, key, value)
    return info, content or b""


def tar_of(
    entries: Iterable[tuple[tarfile.TarInfo, bytes]] | Mapping[str, bytes],
    tar_format: int = tarfile.PAX_FORMAT,
) -> bytes:
    """Return an uncompressed tar of entries (see `entry`), or of a mapping path → content."""
    if isinstance(entries, Mapping):
        entries = [entry(name, content) for name, content in entries.items()]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def compress(tar: bytes, compression: str = "gzip") -> bytes:
    """Return a layer's blob; `compression` is `gzip`, `zstd` or `plain`."""
    if compression == "gzip":
        return gzip.compress(tar, 6, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(tar)
    assert compression == "plain", compression
    return tar


_SUFFIX = {"gzip": "+gzip", "zstd": "+zstd", "plain": ""}


def descriptor(content: bytes, media_type: str, **members: Any) -> dict[str, Any]:
    """Return the descriptor of a blob, as a JSON object (image-spec, "Descriptors")."""
    return {
        "mediaType": media_type,
        "digest": str(Digest.of(content)),
        "size": len(content),
        **members,
    }


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON; equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class MadeImage:
    """One image of one architecture: its manifest's bytes, and every blob by its digest."""

    manifest: bytes
    media_type: str
    blobs: Mapping[Digest, bytes]
    architecture: str

    @property
    def digest(self) -> Digest:
        """Return the digest of the manifest: its hex is the image id."""
        return Digest.of(self.manifest)

    @property
    def document(self) -> dict[str, Any]:
        """Return the manifest, parsed."""
        document: dict[str, Any] = json.loads(self.manifest)
        return document


def make_image(
    layers: Sequence[bytes],
    *,
    config: Mapping[str, Any] | None = None,
    compression: str = "gzip",
    architecture: str = "amd64",
    docker: bool = False,
) -> MadeImage:
    """Make an image of `layers` (uncompressed tars, lowest first).

    `config` is the member `config` of the image configuration (`Env`, `Cmd`, ...). With `docker`
    the media types are Docker's.
    """
    blobs = [compress(tar, compression) for tar in layers]
    configuration = json_bytes(
        {
            "architecture": architecture,
            "os": "linux",
            "created": "2024-01-02T03:04:05Z",
            "config": dict(config or {}),
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in layers],
            },
            "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
        }
    )
    docker_layer = "application/vnd.docker.image.rootfs.diff.tar"
    layer_type = (
        docker_layer + {"gzip": ".gzip", "zstd": ".zstd", "plain": ""}[compression]
        if docker
        else LAYER + _SUFFIX[compression]
    )
    config_type = "application/vnd.docker.container.image.v1+json" if docker else CONFIG
    media_type = DOCKER_MANIFEST if docker else MANIFEST
    manifest = json_bytes(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": descriptor(configuration, config_type),
            "layers": [descriptor(blob, layer_type) for blob in blobs],
        }
    )
    blobs_by_digest = {Digest.of(blob): blob for blob in [configuration, *blobs]}
    return MadeImage(manifest, media_type, blobs_by_digest, architecture)


def make_index(images: Sequence[MadeImage], *, docker: bool = False) -> bytes:
    """Return the bytes of an index over images of several architectures."""
    return json_bytes(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_LIST if docker else INDEX,
            "manifests": [
                descriptor(
                    image.manifest,
                    image.media_type,
                    platform={"architecture": image.architecture, "os": "linux"},
                )
                for image in images
            ],
        }
    )


def write_layout(
    directory: Path, content: bytes, media_type: str, blobs: Iterable[bytes], tag: str = "latest"
) -> Digest:
    """Write an OCI layout whose only entry is `content` (a manifest or an index) with `tag`."""
    store = directory / "blobs" / "sha256"
    store.mkdir(parents=True, exist_ok=True)
    for blob in [content, *blobs]:
        (store / Digest.of(blob).hex).write_bytes(blob)
    (directory / "oci-layout").write_bytes(json_bytes({"imageLayoutVersion": "1.0.0"}))
    annotations = {"org.opencontainers.image.ref.name": tag}
    entry_ = descriptor(content, media_type, annotations=annotations)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry_]}
    (directory / "index.json").write_bytes(json_bytes(index))
    return Digest.of(content)


def oci_layout(
    directory: Path,
    layers: Sequence[bytes],
    *,
    config: Mapping[str, Any] | None = None,
    compression: str = "gzip",
    architecture: str = "amd64",
    docker: bool = False,
    tag: str = "latest",
) -> Digest:
    """Write an OCI layout of one image (see `make_image`); return its manifest's digest."""
    image = make_image(
        layers, config=config, compression=compression, architecture=architecture, docker=docker
    )
    return write_layout(directory, image.manifest, image.media_type, image.blobs.values(), tag)


def oci_index_layout(
    directory: Path, layers: Mapping[str, Sequence[bytes]], *, tag: str = "latest"
) -> dict[str, Digest]:
    """Write an OCI layout of one image for several architectures: architecture → its layers.

    Returns the digest of the index under the name "index", and of each manifest under that of its
    architecture.
    """
    images = [make_image(tars, architecture=name) for name, tars in layers.items()]
    blobs: list[bytes] = []
    for image in images:
        blobs += [image.manifest, *image.blobs.values()]
    index = make_index(images)
    digests = {image.architecture: image.digest for image in images}
    return {"index": write_layout(directory, index, INDEX, blobs, tag), **digests}
