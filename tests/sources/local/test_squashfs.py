"""SIF and squashfs files: layers by `sqfs2tar`, with the metadata of the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from struct import pack

import pytest
import pytest_twisted

from shiftergw.errors import (
    GatewayError,
    ImageTooLarge,
    LayerInvalid,
    ManifestInvalid,
    NoMatchingPlatform,
    SourceUnreadable,
)
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import Digest
from shiftergw.plumbing.threads import Threads
from tests.parts import need
from tests.sources.local.opening import content_of, make_squashfs, open_text, resolve
from tests.sources.saved_images import sif, sif_object, sif_partition

LABELS = {"org.example.author": "ann", "number": 1}
SCRIPT = """#!/bin/sh
# Custom environment
export PATH="/opt/bin:/usr/bin"
export FROM_DOCKER="${FROM_DOCKER:-"a \\"quoted\\" \\$word"}"
export SINGLE='$HOME is not read'
PLAIN=1
export COMPUTED="$(date)"
export OTHER="$PATH:/x"
if true; then export INNER=1; fi
"""


@pytest.fixture(scope="module")
def squashfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a squashfs file with the files of an image of Apptainer."""
    need("sqfs2tar")
    root = tmp_path_factory.mktemp("files")
    (root / ".singularity.d" / "env").mkdir(parents=True)
    (root / ".singularity.d" / "env" / "90-environment.sh").write_text(SCRIPT)
    (root / ".singularity.d" / "labels.json").write_text(json.dumps(LABELS))
    (root / "motd").write_text("hello\n")
    (root / "hard").hardlink_to(root / "motd")
    (root / "soft").symlink_to("motd")
    path = tmp_path_factory.mktemp("squashfs") / "files.sqfs"
    make_squashfs(root, path, "-comp", "zstd")
    return path


@pytest.fixture(scope="module")
def file_system(squashfs: Path) -> bytes:
    """Return the content of that file."""
    return squashfs.read_bytes()


@pytest_twisted.ensureDeferred
async def test_a_squashfs_file(squashfs: Path, tmp_path: Path, threads: Threads) -> None:
    """The content of the file is one layer; the same file has the same id each time."""
    ids = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        source = await open_text(f"squashfs:{squashfs}", tmp_path / name, threads)
        image, config = await resolve(source)
        ids.add(image.id)
        (layer,) = image.layers
        content = await content_of(source, image, layer)
        assert Digest.of(content) == layer.digest == config.diff_ids[0]
        assert b"hello\n" in content
    assert len(ids) == 1
    assert image.source_kind == "squashfs"
    assert config.created > 0


@pytest_twisted.ensureDeferred
async def test_simple_metadata_is_kept(squashfs: Path, tmp_path: Path, threads: Threads) -> None:
    """Variables that are constants and labels that are texts are kept; the rest is dropped."""
    _, config = await resolve(await open_text(f"squashfs:{squashfs}", tmp_path, threads))
    assert config.env == (
        "PATH=/opt/bin:/usr/bin",
        'FROM_DOCKER=a "quoted" $word',
        "SINGLE=$HOME is not read",
        "PLAIN=1",
    )
    assert config.labels == {"org.example.author": "ann"}


@pytest_twisted.ensureDeferred
async def test_a_sif_file(file_system: bytes, tmp_path: Path, threads: Threads) -> None:
    """The primary partition is the image, whatever the other partitions; its labels are read."""
    labels = json.dumps({"from": "the SIF file"}).encode()
    content = sif(
        sif_object(0x4001, b"bootstrap: docker"),
        sif_object(0x4003, labels),
        sif_partition(b"an overlay", role=4),
        sif_partition(file_system),
        sif_object(0x4005, b"signature"),
    )
    (tmp_path / "x.sif").write_bytes(content)
    image, config = await resolve(await open_text(f"{tmp_path}/x.sif", tmp_path, threads))
    assert (config.architecture, config.labels) == ("amd64", {"from": "the SIF file"})
    assert (image.source_kind, len(image.layers)) == ("sif", 1)


@pytest_twisted.ensureDeferred
async def test_a_file_of_singularity_2(
    file_system: bytes, tmp_path: Path, threads: Threads
) -> None:
    """A file system behind a line for the shell, and one that is packed as a whole, are read."""
    (tmp_path / "old.simg").write_bytes(b"#!/usr/bin/env run-singularity\n" + file_system)
    (tmp_path / "x.gz").write_bytes(gzip.compress(file_system))
    ids = set()
    for name in ("old.simg", "x.gz"):
        scratch = tmp_path / f"scratch of {name}"
        scratch.mkdir()
        image, _ = await resolve(await open_text(f"{tmp_path}/{name}", scratch, threads))
        ids.add(image.id)
    assert len(ids) == 1


@pytest_twisted.ensureDeferred
async def test_another_architecture(file_system: bytes, tmp_path: Path, threads: Threads) -> None:
    """A SIF file for another processor is refused."""
    content = sif(sif_partition(file_system, architecture=b"04"), architecture=b"04")
    (tmp_path / "x.sif").write_bytes(content)
    with pytest.raises(NoMatchingPlatform, match="made for linux/arm64"):
        await resolve(await open_text(f"{tmp_path}/x.sif", tmp_path, threads))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (sif(sif_partition(b"", file_system=2)), "ext3 file system, which is not supported"),
        (sif(sif_partition(b"", file_system=5)), "is encrypted"),
        (sif(sif_partition(b"", file_system=4)), "not a squashfs"),
        (sif(sif_partition(b"hsqs", role=1)), "no primary system partition"),
        (sif(sif_object(0x400A, b"{}")), "is an OCI-SIF"),
        (sif(), "no primary system partition"),
        (sif(sif_partition(bytes(100))), "no squashfs file system"),
        (sif(sif_partition(bytes(9000)))[:-9000], "damaged or incomplete"),
        (sif()[:2000], "damaged or incomplete"),
        (sif()[:100], "damaged or incomplete"),
        (sif(total=-1), "damaged or incomplete"),
        (sif(total=10**9), "damaged or incomplete"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_sif_files_without_an_image(
    content: bytes, why: str, tmp_path: Path, threads: Threads
) -> None:
    """The error names the unsupported or damaged part."""
    (tmp_path / "x.sif").write_bytes(content)
    with pytest.raises(ManifestInvalid) as caught:
        await open_text(f"sif:{tmp_path}/x.sif", tmp_path, threads)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "value", "kind", "why"),
    [
        (40, pack("<Q", 10**9), ManifestInvalid, "is incomplete"),
        (28, pack("<H", 3), ManifestInvalid, "version 3.0"),
        (4, pack("<I", 4_000_000_000), ImageTooLarge, "4000000000 entries"),
        (48, bytes(48), LayerInvalid, "is damaged"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_damaged_file_systems(
    offset: int,
    value: bytes,
    kind: type[GatewayError],
    why: str,
    file_system: bytes,
    tmp_path: Path,
    threads: Threads,
) -> None:
    """A file system that is cut short, too large, or not readable is refused."""
    content = file_system[:offset] + value + file_system[offset + len(value) :]
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(kind) as caught:
        await open_text(f"squashfs:{tmp_path}/x", tmp_path, threads)
    assert why in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_a_bomb(tmp_path: Path, threads: Threads) -> None:
    """A file system that unpacks to more than the limits is refused, and the program ends."""
    need("sqfs2tar")
    (tmp_path / "files").mkdir()
    with (tmp_path / "files" / "zeros").open("wb") as file:
        file.truncate(50_000_000)
    make_squashfs(tmp_path / "files", tmp_path / "x")
    limits = BuildLimits(layers_size=2_000_000)
    with pytest.raises(ImageTooLarge, match="more than 2 MB"):
        await open_text(f"squashfs:{tmp_path}/x", tmp_path, threads, limits=limits)


@pytest_twisted.ensureDeferred
async def test_a_machine_without_the_program(
    squashfs: Path, tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the program is missing, the error says which package has it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceUnreadable, match=r"sqfs2tar.*squashfs-tools-ng"):
        await open_text(f"squashfs:{squashfs}", tmp_path, threads)
