"""Archives of `docker save` of all ages, `podman save` and skopeo (`docker-archive:`).

Since Docker 1.10 `manifest.json` lists images with their configurations and layers; Docker 25 and
later add an OCI layout, which has the same blobs. Before, `repositories` names the newest layer of
each image, and each layer has a directory with its JSON document. No form has a manifest with the
digest of the image, so a canonical one is made: the same image has the same id in all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

from shiftergw.errors import BlobCorrupt, ImageTooLarge, ManifestInvalid, printable
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import Digest
from shiftergw.model.names import DOCKER_HUB_ALIASES
from shiftergw.oci.budget import Budget, Cost
from shiftergw.oci.canonical import canonical_manifest
from shiftergw.oci.compression import decompress, is_packed
from shiftergw.oci.manifest import MAX_CONFIG, MAX_MANIFEST, parse_config
from shiftergw.oci.members import member, read_object, words
from shiftergw.oci.v1_images import image_config
from shiftergw.sources.local.extents import Extent, ExtentFile, file_errors, read_extent
from shiftergw.sources.local.image_files import SingleImage
from shiftergw.sources.local.selectors import list_images, number_of
from shiftergw.sources.local.trees import FileTree

MANIFEST = "manifest.json"
REPOSITORIES = "repositories"

_MAGIC_BYTES = 4
_V1_ID = re.compile("[0-9a-f]{1,128}")


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image of an archive: its names, and how to find its configuration and layers.

    `describe` returns the configuration, or None, and the names of the layers' members, the lowest
    first, with the v1 documents of images that have no configuration.
    """

    names: tuple[str, ...]
    describe: Callable[[], tuple[bytes | None, tuple[str, ...], list[dict[str, Any]]]]


class DockerArchive:
    """An archive of `docker save`; reading it is limited by the budget of one image."""

    def __init__(self, tree: FileTree, stored_size: int, limits: BuildLimits, stop: Event) -> None:
        """Read members of `tree`, whose archive has `stored_size` bytes; `stop` ends it soon."""
        self._tree = tree
        self._limits = limits
        self._stop = stop
        self._budget = Budget(limits, stop, stored_size)

    def image(self, selector: str) -> SingleImage:
        """Return the image of a name or `@INDEX`, or else the only one.

        Blocks: it reads layers that are compressed, and all layers of archives before Docker 1.10,
        to know their sizes and digests. Raises `ImageNotFound` with a list of the images,
        `ManifestInvalid`, `BlobCorrupt`, `ImageTooLarge`, and `StopRequested`.
        """
        config, names, documents = self._choose(list(self._images()), selector).describe()
        if not names:
            raise ManifestInvalid(
                "The image has no layers: there is no file system in it.",
                remedy="Save an image that has files, with a current tool.",
            )
        if len(names) > self._limits.layers:
            raise ImageTooLarge.for_limit(
                f"The image has {len(names)} layers, and the gateway takes at most"
                f" {self._limits.layers}.",
                "MaxLayers",
            )
        diff_ids: Sequence[Digest | None] = [None] * len(names)
        if config is not None:
            diff_ids = parse_config(config).diff_ids
            if len(diff_ids) != len(names):
                raise ManifestInvalid(
                    f"The image has {len(names)} layers in the archive, and {len(diff_ids)} in its"
                    " configuration.",
                    remedy="Save it once more with a current tool.",
                )
        extents: dict[Digest, Extent] = {}
        layers: list[tuple[Digest, int]] = []
        sizes: dict[Extent, tuple[Digest, int]] = {}
        for name, diff_id in zip(names, diff_ids, strict=True):
            extent = self._layer(name)
            if extent not in sizes:
                sizes[extent] = self._measure(extent, diff_id)
            digest, size = sizes[extent]
            if diff_id not in {None, digest}:
                digest, size = self._measure(extent, diff_id)
            extents[digest] = extent
            layers.append((digest, size))
        config = config or image_config(documents, [digest for digest, _ in layers])
        return SingleImage(canonical_manifest(config, layers), config, extents)

    def _images(self) -> Iterator[SavedImage]:
        """Yield the images in the order of the archive."""
        manifest = self._tree.extent(MANIFEST)
        if manifest is not None:
            yield from map(self._image, _list(read_extent(manifest, MAX_MANIFEST, MANIFEST)))
            return
        repositories = self._tree.extent(REPOSITORIES)
        if repositories is None and self._tree.extent("index.json") is not None:
            raise ManifestInvalid(
                "The archive is an OCI archive, not one of `docker save`.",
                remedy="Write `oci-archive:` in front of its path, or the path alone.",
            )
        if repositories is None:
            raise ManifestInvalid(
                f"The archive has no image: neither {MANIFEST} nor {REPOSITORIES} is in it.",
                remedy="Write it with `docker save`, `podman save` or skopeo. `docker export` saves"
                " the files of a container, and no image.",
            )
        content = read_extent(repositories, MAX_MANIFEST, REPOSITORIES)
        ids: dict[str, list[str]] = {}
        for repository, tags in read_object(content, MAX_MANIFEST, REPOSITORIES).items():
            if not isinstance(tags, dict):
                raise _format_error(REPOSITORIES)
            for tag, v1_id in tags.items():
                ids.setdefault(_v1_id(v1_id), []).append(f"{repository}:{tag}")
        for v1_id, names in ids.items():
            yield SavedImage(tuple(names), partial(self._old_image, v1_id))

    def _image(self, entry: dict[str, Any]) -> SavedImage:
        def describe() -> tuple[bytes, tuple[str, ...], list[dict[str, Any]]]:
            extent = self._tree.extent(member(entry, "Config", str))
            if extent is None:
                raise ManifestInvalid(
                    "The archive lacks the configuration of the image.",
                    remedy="Save or copy it once more: it may be incomplete.",
                )
            config = read_extent(extent, MAX_CONFIG, "configuration of the image")
            return config, words(entry, "Layers"), []

        return SavedImage(words(entry, "RepoTags"), describe)

    def _old_image(self, v1_id: str) -> tuple[None, tuple[str, ...], list[dict[str, Any]]]:
        """Follow the parents from the newest layer of an image of before Docker 1.10."""
        documents: list[dict[str, Any]] = []
        names: list[str] = []
        total = 0
        while v1_id:
            if len(names) > self._limits.layers:
                break
            extent = self._tree.extent(f"{v1_id}/json")
            if extent is None:
                raise ManifestInvalid(
                    f"The archive lacks the description of the layer {v1_id}.",
                    remedy="Save or copy it once more: it may be incomplete.",
                )
            content = read_extent(extent, MAX_CONFIG - total, "history of the image")
            total += len(content)
            documents.insert(0, read_object(content, MAX_CONFIG, "description of a layer"))
            names.insert(0, f"{v1_id}/layer.tar")
            parent = member(documents[0], "parent", str)
            v1_id = _v1_id(parent) if parent else ""
        return None, tuple(names), documents

    def _choose(self, images: list[SavedImage], selector: str) -> SavedImage:
        number = number_of(selector, len(images))
        if number is not None:
            return images[number]
        if selector:
            name = _normal_name(selector)
            matches = [i for i in images if name in map(_normal_name, i.names)]
        else:
            matches = images
        if len(matches) == 1:
            return matches[0]
        names = [", ".join(i.names) or f"@{number}" for number, i in enumerate(images)]
        raise list_images("archive", selector, names)

    def _layer(self, name: str) -> Extent:
        extent = self._tree.extent(name)
        if extent is None:
            raise ManifestInvalid(
                f"The archive lacks the layer {printable(name, 120)}.",
                remedy="Save or copy it once more: it may be incomplete. If it was made by `docker"
                " save` of an image that was pulled for one platform, name that platform.",
            )
        with file_errors("archive"), ExtentFile(extent) as file:
            has_magic = is_packed(file.read(_MAGIC_BYTES))
        return Extent(extent.path, extent.offset, extent.size, has_magic)

    def _measure(self, extent: Extent, diff_id: Digest | None) -> tuple[Digest, int]:
        """Return digest and size of an unpacked layer; read it only if they are not known."""
        if diff_id is not None and not extent.is_packed:
            return diff_id, extent.size
        digest = hashlib.new(diff_id.algorithm if diff_id else "sha256")
        size = position = 0
        cost = self._budget.layer()

        def report(read_bytes: int) -> None:
            nonlocal position
            position = read_bytes

        opening = ExtentFile(extent)
        with (
            file_errors("archive"),
            closing(decompress(lambda _: opening, self._stop, report)) as pieces,
        ):
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                cost.update(Cost(size, 0, 0, position), self._stop)
        unpacked_digest = Digest(digest.name, digest.hexdigest())
        if diff_id not in {None, unpacked_digest}:
            raise BlobCorrupt(
                "A layer in the archive unpacks to other bytes than the image's configuration"
                " says.",
                remedy="Save or copy it once more.",
            )
        return unpacked_digest, size


def _list(content: bytes) -> list[dict[str, Any]]:
    try:
        entries = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(
            f"The archive's {MANIFEST} is not JSON.",
            remedy="Save or copy it once more: it may be damaged.",
        ) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _format_error(MANIFEST)
    return entries


def _format_error(name: str) -> ManifestInvalid:
    return ManifestInvalid(
        f"The archive's {name} is not as `docker save` writes it.",
        remedy="Write the archive with `docker save`, `podman save` or skopeo; an OCI archive has"
        " the prefix `oci-archive:`, and a directory of skopeo `dir:`.",
    )


def _v1_id(value: object) -> str:
    if not isinstance(value, str) or _V1_ID.fullmatch(value) is None:
        raise _format_error(REPOSITORIES)
    return value


def _normal_name(name: str) -> str:
    """Return a name as docker means it: in Docker Hub, and `latest`, unless it says otherwise."""
    first, slash, rest = name.partition("/")
    if slash and first in DOCKER_HUB_ALIASES:
        name = rest.removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
