"""OCI layouts and directories of skopeo: choice by tag and platform, verified documents."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import (
    BlobCorrupt,
    GatewayError,
    ImageNotFound,
    ManifestInvalid,
    NoMatchingPlatform,
    RegistryUnavailable,
    SourceUnreadable,
)
from shiftergw.model.images import Digest, Platform
from shiftergw.model.references import ImageReference
from shiftergw.plumbing.threads import Threads
from shiftergw.sources.local import layout_location
from shiftergw.sources.local.layout_location import LayoutLocation
from tests.images import (
    INDEX,
    compress,
    descriptor,
    json_bytes,
    make_image,
    oci_index_layout,
    oci_layout,
    tar_of,
    write_layout,
)
from tests.oci.schema1_manifests import layer_history, schema_1_manifest, sign
from tests.parts import HungDisk
from tests.sources.local.opening import content_of, open_text, quiet, resolve, skopeo_copy

LAYERS = [tar_of({"etc/motd": b"hello"}), tar_of({"b": b"b" * 10_000})]
FIRST, SECOND = make_image(LAYERS), make_image(LAYERS[:1])
ARM = make_image(LAYERS[1:], architecture="arm64")


def layout(directory: Path, *entries: dict[str, Any], images: Any = (FIRST, SECOND, ARM)) -> str:
    """Write a layout with these entries in its index; return the name of the source."""
    for image in images:
        write_layout(directory, image.manifest, image.media_type, image.blobs.values())
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}
    (directory / "index.json").write_bytes(json_bytes(index))
    return f"oci:{directory}"


def entry_of(image: Any, name: str | None = None, **members: Any) -> dict[str, Any]:
    """Return the entry of an image, with its name."""
    if name is not None:
        members["annotations"] = {"org.opencontainers.image.ref.name": name}
    return descriptor(image.manifest, image.media_type, **members)


def platform(architecture: str) -> dict[str, Any]:
    """Return the members of an entry that name its platform."""
    return {"platform": {"architecture": architecture, "os": "linux"}}


@pytest.mark.parametrize("selector", [":1", ":@0", f":@{FIRST.digest}"])
@pytest_twisted.ensureDeferred
async def test_the_choice_of_an_image(selector: str, tmp_path: Path, threads: Threads) -> None:
    """A tag, a number or a digest chooses one of several images."""
    name = layout(tmp_path / "l", entry_of(FIRST, "1"), entry_of(SECOND, "registry.example/a/b:2"))
    image, _ = await resolve(await open_text(name + selector, tmp_path, threads))
    assert image.digest == FIRST.digest
    name += ":registry.example/a/b:2"
    assert (await resolve(await open_text(name, tmp_path, threads)))[0].digest == SECOND.digest


@pytest_twisted.ensureDeferred
async def test_the_whole_name_of_docker(tmp_path: Path, threads: Threads) -> None:
    """Docker and containerd annotate the tag and the whole name; both choose an image."""
    annotations = {
        "org.opencontainers.image.ref.name": "1",
        "io.containerd.image.name": "docker.io/team/app:1",
    }
    whole_name = {"io.containerd.image.name": "docker.io/team/other:1"}
    name = layout(
        tmp_path / "l",
        entry_of(FIRST, annotations=annotations),
        entry_of(SECOND, annotations=whole_name),
    )
    for selector in ("1", "docker.io/team/app:1"):
        image, _ = await resolve(await open_text(f"{name}:{selector}", tmp_path, threads))
        assert image.digest == FIRST.digest


@pytest.mark.parametrize("selector", ["", ":3", ":@2"])
@pytest_twisted.ensureDeferred
async def test_an_error_lists_the_images(selector: str, tmp_path: Path, threads: Threads) -> None:
    """Without a choice, or with the choice of a missing image, the error lists the images."""
    name = layout(tmp_path / "l", entry_of(FIRST, "1"), entry_of(SECOND))
    with pytest.raises(ImageNotFound, match="2 images: 1, @1"):
        await resolve(await open_text(name + selector, tmp_path, threads))


@pytest_twisted.ensureDeferred
async def test_an_index(tmp_path: Path, threads: Threads) -> None:
    """An index in a layout is read for each platform."""
    digests = oci_index_layout(tmp_path / "l", {"amd64": LAYERS, "arm64": LAYERS[:1]})
    source = await open_text(f"oci:{tmp_path}/l", tmp_path, threads)
    for architecture in ("amd64", "arm64"):
        image, _ = await resolve(source, Platform(architecture))
        assert (image.digest, image.source_digest) == (digests[architecture], digests["index"])
    with pytest.raises(NoMatchingPlatform, match="linux/amd64, linux/arm64"):
        await resolve(source, Platform("ppc64le"))


@pytest.mark.parametrize("name", [None, "1"])
@pytest_twisted.ensureDeferred
async def test_entries_of_one_name_are_an_index(
    name: str | None, tmp_path: Path, threads: Threads
) -> None:
    """One of several images with one name, or without names, is chosen by its platform."""
    text = layout(
        tmp_path / "l",
        entry_of(FIRST, name, **platform("amd64")),
        entry_of(ARM, name, **platform("arm64")),
    )
    source = await open_text(text, tmp_path, threads)
    assert (await resolve(source))[0].digest == FIRST.digest
    assert (await resolve(source, Platform("arm64")))[0].digest == ARM.digest


@pytest_twisted.ensureDeferred
async def test_an_index_in_a_directory_of_skopeo(tmp_path: Path, threads: Threads) -> None:
    """A directory that `skopeo copy --all … dir:` writes is read for each platform."""
    digests = oci_index_layout(tmp_path / "l", {"amd64": LAYERS, "arm64": LAYERS[:1]})
    skopeo_copy(f"oci:{tmp_path}/l:latest", f"dir:{tmp_path}/d", "--all", "--preserve-digests")
    source = await open_text(f"dir:{tmp_path}/d", tmp_path, threads)
    for architecture in ("amd64", "arm64"):
        image, _ = await resolve(source, Platform(architecture))
        assert image.digest == digests[architecture]
        assert len(await content_of(source, image, image.layers[0])) == image.layers[0].size


@pytest.mark.parametrize("is_signed", [False, True])
@pytest_twisted.ensureDeferred
async def test_schema_1_in_a_directory(is_signed: bool, tmp_path: Path, threads: Threads) -> None:
    """A manifest of schema 1 is read; sizes are those of the files."""
    blobs = [compress(layer) for layer in LAYERS]
    content = schema_1_manifest(
        [Digest.of(blob) for blob in blobs], [layer_history(0), layer_history(1)]
    )
    for blob in blobs:
        (tmp_path / Digest.of(blob).hex).write_bytes(blob)
    (tmp_path / "manifest.json").write_bytes(sign(content) if is_signed else content)
    (tmp_path / "version").write_text("Directory Transport Version: 1.1\n")
    source = await open_text(str(tmp_path), tmp_path, threads)
    image, config = await resolve(source)
    assert image.digest == Digest.of(content)
    assert [layer.size for layer in image.layers] == [len(blob) for blob in blobs]
    assert config.diff_ids == ()
    assert [await content_of(source, image, layer) for layer in image.layers] == blobs


def _blob(directory: Path, digest: Digest) -> Path:
    return directory / "blobs" / "sha256" / digest.hex


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"!")


LAYER = Digest.of(compress(LAYERS[0]))
CONFIG = Digest.parse(FIRST.document["config"]["digest"])


@pytest.mark.parametrize(
    ("harm", "kind", "why"),
    [
        (lambda d: _damage(_blob(d, FIRST.digest)), BlobCorrupt, "manifest of the image is not"),
        (lambda d: _damage(_blob(d, CONFIG)), BlobCorrupt, "configuration of the image is not"),
        (lambda d: _blob(d, FIRST.digest).unlink(), ImageNotFound, "lacks the blob"),
        (lambda d: _blob(d, LAYER).unlink(), ImageNotFound, "lacks the blob"),
        (lambda d: _blob(d, LAYER).write_bytes(b"short"), BlobCorrupt, "has 5 bytes"),
        (lambda d: (d / "index.json").write_bytes(b"["), ManifestInvalid, "not JSON"),
        (lambda d: (d / "index.json").write_bytes(b"{}"), ImageNotFound, "no images"),
        (lambda d: (d / "index.json").unlink(), ManifestInvalid, "has no index.json"),
        (
            lambda d: (d / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}'),
            ManifestInvalid,
            "version '2.0.0'",
        ),
        (
            lambda d: (d / "index.json").write_text('{"manifests": [{"digest": "sha256:../x"}]}'),
            ManifestInvalid,
            "names a blob wrongly",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_damaged_layouts(
    harm: Callable[[Path], object],
    kind: type[GatewayError],
    why: str,
    tmp_path: Path,
    threads: Threads,
) -> None:
    """The error names the damaged or missing part of a layout."""
    directory = tmp_path / "l"
    name = layout(directory, entry_of(FIRST, "1"))
    harm(directory)
    with pytest.raises(kind) as caught:
        await _read_all(name, tmp_path, threads)
    assert why in str(caught.value)


async def _read_all(name: str, scratch: Path, threads: Threads) -> None:
    source = await open_text(name, scratch, threads)
    image, _ = await resolve(source)
    await source.prove(image, None, quiet)


@pytest_twisted.ensureDeferred
async def test_a_pipe_in_place_of_a_blob(tmp_path: Path, threads: Threads) -> None:
    """A named pipe, which could block for ever, is not read."""
    directory = tmp_path / "l"
    name = layout(directory, entry_of(FIRST, "1"))
    _blob(directory, LAYER).unlink()
    os.mkfifo(_blob(directory, LAYER))
    with pytest.raises(SourceUnreadable, match="Not a regular file"):
        await _read_all(name, tmp_path, threads)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a directory of a site: layouts in subdirectories."""
    oci_layout(tmp_path / "site" / "team" / "app", LAYERS, tag="1")
    oci_layout(tmp_path / "site" / "base", LAYERS[:1], tag="latest")
    return tmp_path / "site"


@pytest_twisted.ensureDeferred
async def test_a_location(site: Path, threads: Threads) -> None:
    """A repository is a subdirectory with a layout, and a tag is a name in it."""
    location = LayoutLocation("site", site, threads)
    for text, layers in (("team/app:1", LAYERS), ("base", LAYERS[:1])):
        reference = ImageReference.parse(text)
        image, _ = await location.resolve(reference, Platform(), None, quiet)
        assert len(image.layers) == len(layers)
        assert (image.location, image.repository) == ("site", reference.name)
        assert image.source_kind == "oci-layout"
        assert not image.private
    for text in ("team/app:2", "team:1", "absent:1", "team/app/blobs:1"):
        with pytest.raises(ImageNotFound) as caught:
            await location.head(ImageReference.parse(text), None, quiet)
        assert caught.value.remedy == "Check the name and the tag of the image."


@pytest_twisted.ensureDeferred
async def test_a_location_that_is_one_layout(tmp_path: Path, threads: Threads) -> None:
    """If the directory is a layout itself, its names are those of repositories with their tags."""
    layout(tmp_path, entry_of(FIRST, "team/app:1"), entry_of(SECOND, "team/app:2"))
    location = LayoutLocation("site", tmp_path, threads)
    digest = await location.head(ImageReference.parse("team/app:2"), None, quiet)
    assert digest == SECOND.digest
    with pytest.raises(ImageNotFound):
        await location.head(ImageReference.parse("team/other:2"), None, quiet)


@pytest_twisted.ensureDeferred
async def test_a_location_that_hangs(
    site: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory whose file system hangs is an error after a while, and can be canceled."""
    monkeypatch.setattr(layout_location, "ANSWER_SECONDS", 0.2)
    location = LayoutLocation("site", site, threads)
    reference = ImageReference.parse("base")
    disk = HungDisk(site)
    try:
        with pytest.raises(RegistryUnavailable, match="directory of site has not answered"):
            await location.head(reference, None, quiet)
        looking = Deferred.fromCoroutine(location.head(reference, None, quiet))
        looking.cancel()
        with pytest.raises((CancelledError, RegistryUnavailable)):
            await looking
    finally:
        disk.end()


@pytest_twisted.ensureDeferred
async def test_an_image_for_another_system(site: Path, threads: Threads) -> None:
    """The error for an image of the site does not mention a user's laptop."""
    location = LayoutLocation("site", site, threads)
    with pytest.raises(NoMatchingPlatform) as caught:
        await location.resolve(ImageReference.parse("base"), Platform("arm64"), None, quiet)
    assert "laptop" not in str(caught.value)
