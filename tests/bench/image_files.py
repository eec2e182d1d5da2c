"""Images of the bench on the disk: a tree and a compressed layer for each part, and a registry."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from isal import igzip

from tests.bench.contents import EPOCH
from tests.images import CONFIG, INDEX, LAYER, MANIFEST, descriptor, json_bytes
from tests.registries import DockerRegistry

_CHUNK = 1 << 20


@dataclass(frozen=True)
class LayerOnDisk:
    """A layer: the tree that it was made of, the compressed file, and its digests."""

    tree: Path
    blob: Path
    size: int
    digest: str
    diff_id: str
    entries: int


@dataclass(frozen=True)
class ImageOnDisk:
    """An image of layers, in a registry as `name`, with its tag."""

    name: str
    layers: Sequence[LayerOnDisk]

    @property
    def trees(self) -> list[Path]:
        """Return the trees of all layers, for `mksquashfs`."""
        return [layer.tree for layer in self.layers]

    @property
    def entries(self) -> int:
        """Return the number of entries in all layers."""
        return sum(layer.entries for layer in self.layers)

    @property
    def size(self) -> int:
        """Return the compressed size of all layers in bytes."""
        return sum(layer.size for layer in self.layers)

    def describe(self) -> str:
        """Return the size of the image in words."""
        layers = f"{len(self.layers)} layer{'s' * (len(self.layers) > 1)}"
        return f"{layers}, {self.size / 1e6:,.1f} MB compressed, {self.entries:,} entries"


class _Digester(io.RawIOBase):
    """Passes data on to another file, and computes their SHA-256."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self.size = 0
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        content = bytes(cast("bytes", data))
        self.sha256.update(content)
        self._sink.write(content)
        self.size += len(content)
        return len(content)


def make_layer(where: Path, name: str, fill: Callable[[Path], None]) -> LayerOnDisk:
    """Have `fill` write a tree, and make a gzip layer of it; both are below `where`."""
    tree, blob = where / "trees" / name, where / f"{name}.tar.gz"
    tree.mkdir(parents=True)
    fill(tree)
    entries = 0
    with blob.open("wb") as file:
        gzip_sink = _Digester(file)
        with igzip.IGzipFile(fileobj=gzip_sink, mode="wb", compresslevel=2, mtime=0) as gzip:
            tar_sink = _Digester(cast("IO[bytes]", gzip))
            archive_file = cast("IO[bytes]", tar_sink)
            with tarfile.open(
                fileobj=archive_file, mode="w|", format=tarfile.GNU_FORMAT, bufsize=_CHUNK
            ) as archive:
                for path in sorted(tree.rglob("*")):
                    _add(archive, path, path.relative_to(tree))
                    entries += 1
    digests = [f"sha256:{digester.sha256.hexdigest()}" for digester in (gzip_sink, tar_sink)]
    return LayerOnDisk(tree, blob, gzip_sink.size, digests[0], digests[1], entries)


def _add(archive: tarfile.TarFile, path: Path, name: Path) -> None:
    info = archive.gettarinfo(path, os.fspath(name))
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = EPOCH
    if not info.isreg():
        archive.addfile(info)
        return
    with path.open("rb") as file:
        archive.addfile(info, file)


def push(registry: DockerRegistry, where: Path, image: ImageOnDisk) -> None:
    """Put an image into a registry, through an OCI layout of links to its layers."""
    config = json_bytes(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in image.layers]},
        }
    )
    manifest = json_bytes(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(config, CONFIG),
            "layers": [
                {"mediaType": f"{LAYER}+gzip", "digest": layer.digest, "size": layer.size}
                for layer in image.layers
            ],
        }
    )
    repository, _, tag = image.name.rpartition(":")
    layout = where / f"layout-{repository.replace('/', '-')}-{tag}"
    store = layout / "blobs" / "sha256"
    store.mkdir(parents=True)
    for layer in image.layers:
        path = store / layer.digest.partition(":")[2]
        if not path.exists():  # the same layer may be there twice
            path.hardlink_to(layer.blob)
    for content in (config, manifest):
        (store / hashlib.sha256(content).hexdigest()).write_bytes(content)
    (layout / "oci-layout").write_bytes(json_bytes({"imageLayoutVersion": "1.0.0"}))
    annotations = {"org.opencontainers.image.ref.name": tag}
    entry = descriptor(manifest, MANIFEST, annotations=annotations)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    (layout / "index.json").write_bytes(json_bytes(index))
    registry.push(layout, image.name, tag)
