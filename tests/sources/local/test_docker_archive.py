"""Archives of all versions of `docker save`: one id, choice among images, damaged archives."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.errors import (
    BlobCorrupt,
    GatewayError,
    ImageNotFound,
    ImageTooLarge,
    ManifestInvalid,
    NoMatchingPlatform,
)
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import Digest
from shiftergw.plumbing.threads import Threads
from tests.images import entry, json_bytes, oci_layout, tar_of
from tests.sources.local.opening import content_of, open_text, resolve, skopeo_copy
from tests.sources.saved_images import (
    Members,
    config_bytes,
    docker_1_9,
    docker_1_10,
    docker_25,
    join_archives,
    podman,
)

LAYERS = [tar_of({"etc/motd": b"hello"}), tar_of({"b": b"b" * 10_000})]
OTHER_LAYERS = [tar_of({"etc/motd": b"other"})]
CONFIG = config_bytes(LAYERS, env=["A=b"])
OTHER_CONFIG = config_bytes(OTHER_LAYERS)
NAMES = ["team/app:1"]


def write(path: Path, members: Members | bytes) -> str:
    """Write an archive; return the name of the source."""
    path.write_bytes(members if isinstance(members, bytes) else tar_of(members))
    return f"docker-archive:{path}"


def repack(members: Members, pack: Callable[[bytes], bytes]) -> Members:
    """Return an archive whose layers are packed."""
    return [
        entry(info.name, pack(content))
        if info.name.endswith(".tar") and content
        else (info, content)
        for info, content in members
    ]


ARCHIVES: dict[str, bytes] = {
    "docker 1.10": tar_of(docker_1_10(LAYERS, CONFIG, NAMES)),
    "docker 25": tar_of(docker_25(LAYERS, CONFIG, NAMES)),
    "podman": tar_of(podman(LAYERS, CONFIG, NAMES)),
    "without a name": tar_of(docker_1_10(LAYERS, CONFIG, [])),
    "compressed layers": tar_of(repack(podman(LAYERS, CONFIG, NAMES), gzip.compress)),
    "gzip": gzip.compress(tar_of(docker_1_10(LAYERS, CONFIG, NAMES))),
    "joined": join_archives(
        docker_1_10(LAYERS, CONFIG, NAMES), docker_1_10(OTHER_LAYERS, OTHER_CONFIG, ["b:1"], "b")
    ),
}


@pytest.mark.parametrize("age", ARCHIVES)
@pytest_twisted.ensureDeferred
async def test_the_same_image_has_the_same_id(age: str, tmp_path: Path, threads: Threads) -> None:
    """The id of an image does not depend on the tool and version that saved it."""
    first = write(tmp_path / "first", ARCHIVES["docker 1.10"])
    name = write(tmp_path / "archive", ARCHIVES[age]) + (":@0" if age == "joined" else "")
    image, config = await resolve(await open_text(name, tmp_path, threads))
    expected, _ = await resolve(await open_text(first, tmp_path, threads))
    assert image.id == expected.id
    assert config.env == ("A=b",)
    assert image.source_kind == "docker-archive"


@pytest_twisted.ensureDeferred
async def test_skopeo_saves_the_same_image(tmp_path: Path, threads: Threads) -> None:
    """An archive that skopeo makes of a layout has the id of the archive of `docker save`."""
    oci_layout(tmp_path / "layout", LAYERS)
    skopeo_copy(f"oci:{tmp_path}/layout:latest", f"docker-archive:{tmp_path}/s.tar:team/app:1")
    image, config = await resolve(await open_text(f"{tmp_path}/s.tar", tmp_path, threads))
    with tarfile.open(tmp_path / "s.tar") as archive:
        member = archive.extractfile(f"{image.config_blob.digest.hex}.json")
        assert member is not None
        members = docker_1_10(LAYERS, member.read(), NAMES)
    source = await open_text(write(tmp_path / "again", members), tmp_path, threads)
    assert (await resolve(source))[0].id == image.id
    assert config.diff_ids == tuple(map(Digest.of, LAYERS))


@pytest_twisted.ensureDeferred
async def test_an_archive_of_before_docker_1_10(tmp_path: Path, threads: Threads) -> None:
    """Without a configuration in the archive, it is made of the history of the layers."""
    name = write(tmp_path / "a", docker_1_9(LAYERS, NAMES, ["A=b"]))
    image, config = await resolve(await open_text(name, tmp_path, threads))
    assert config.diff_ids == tuple(map(Digest.of, LAYERS))
    assert (config.env, config.architecture, config.created) == (("A=b",), "amd64", 1388631841)
    name = write(tmp_path / "b", docker_1_9(LAYERS, ["x:2"], ["A=b"], salt="saved again"))
    assert (await resolve(await open_text(name, tmp_path, threads)))[0].id == image.id


@pytest_twisted.ensureDeferred
async def test_repeated_layers(tmp_path: Path, threads: Threads) -> None:
    """A layer that occurs twice in the image is a link in the archive, which is followed."""
    layers = [LAYERS[0], LAYERS[1], LAYERS[0]]
    config = config_bytes(layers)
    ids = set()
    for number, members in enumerate(
        (docker_1_10(layers, config, NAMES), podman(layers, config, NAMES))
    ):
        source = await open_text(write(tmp_path / str(number), members), tmp_path, threads)
        image, _ = await resolve(source)
        ids.add(image.id)
        assert [await content_of(source, image, layer) for layer in image.layers] == layers
    assert len(ids) == 1


TWO_IMAGES = join_archives(
    docker_1_10(LAYERS, CONFIG, ["team/app:1", "team/app:latest"]),
    docker_1_10(OTHER_LAYERS, OTHER_CONFIG, [], "other"),
)
TWO_OLD_IMAGES = join_archives(
    docker_1_9(LAYERS, ["team/app:1", "team/app:latest"]),
    docker_1_9(OTHER_LAYERS, ["busybox:1"], salt="other"),
)


@pytest.mark.parametrize(
    ("archive", "selector", "layers"),
    [
        (TWO_IMAGES, "team/app:1", LAYERS),
        (TWO_IMAGES, "team/app", LAYERS),
        (TWO_IMAGES, "docker.io/team/app:1", LAYERS),
        (TWO_IMAGES, "@0", LAYERS),
        (TWO_IMAGES, "@1", OTHER_LAYERS),
        (TWO_OLD_IMAGES, "team/app:1", LAYERS),
        (TWO_OLD_IMAGES, "docker.io/library/busybox:1", OTHER_LAYERS),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_choice_of_an_image(
    archive: bytes, selector: str, layers: list[bytes], tmp_path: Path, threads: Threads
) -> None:
    """A name, as docker writes it or in full, or a number chooses one of several images."""
    name = f"{write(tmp_path / 'a', archive)}:{selector}"
    image, _ = await resolve(await open_text(name, tmp_path, threads))
    assert [layer.digest for layer in image.layers] == list(map(Digest.of, layers))


@pytest.mark.parametrize("selector", ["", ":absent", ":team/app:2", ":@2", ":@99999999999"])
@pytest_twisted.ensureDeferred
async def test_an_error_lists_the_images(selector: str, tmp_path: Path, threads: Threads) -> None:
    """Without a choice, or with the choice of a missing image, the error lists the images."""
    name = write(tmp_path / "a", TWO_IMAGES) + selector
    with pytest.raises(ImageNotFound, match="2 images: team/app:1, team/app:latest, @1") as caught:
        await open_text(name, tmp_path, threads)
    assert "counted from 0" in caught.value.remedy


@pytest_twisted.ensureDeferred
async def test_an_image_of_another_architecture(tmp_path: Path, threads: Threads) -> None:
    """An image for another processor is refused, and the remedy names the option to build it."""
    config = config_bytes(LAYERS, "arm64")
    name = write(tmp_path / "a", docker_1_10(LAYERS, config, NAMES))
    with pytest.raises(NoMatchingPlatform, match="made for linux/arm64") as caught:
        await resolve(await open_text(name, tmp_path, threads))
    assert "arm64 laptop" in caught.value.remedy
    assert "--platform linux/amd64" in caught.value.remedy


def without(members: Members, part: str) -> Members:
    """Return an archive that lacks the first member with this part in its name."""
    lost_name = next(info.name for info, _ in members if part in info.name)
    return [(info, content) for info, content in members if info.name != lost_name]


def manifest(document: object) -> Members:
    """Return an archive with this `manifest.json` as its only member."""
    return [entry("manifest.json", json_bytes(document))]


V1 = f"{'a' * 64}"


@pytest.mark.parametrize(
    ("members", "kind", "why"),
    [
        (without(docker_1_10(LAYERS, CONFIG, NAMES), ".json"), ManifestInvalid, "lacks the config"),
        (without(docker_1_10(LAYERS, CONFIG, NAMES), ".tar"), ManifestInvalid, "lacks the layer"),
        (without(docker_1_9(LAYERS, NAMES), "/json"), ManifestInvalid, "lacks the description"),
        (docker_1_10(LAYERS, OTHER_CONFIG, NAMES), ManifestInvalid, "2 layers in the archive, and"),
        (docker_1_10([], config_bytes([]), NAMES), ManifestInvalid, "no layers"),
        (
            repack(podman(LAYERS, CONFIG, NAMES), lambda _: gzip.compress(b"other")),
            BlobCorrupt,
            "unpacks to other bytes",
        ),
        (manifest({}), ManifestInvalid, "not as `docker save` writes it"),
        (manifest([1]), ManifestInvalid, "not as `docker save` writes it"),
        (manifest([]), ImageNotFound, "no images"),
        (manifest([{"Config": 1}]), ManifestInvalid, "wrong type"),
        (manifest([{"Config": "../../etc/passwd"}]), ManifestInvalid, "leads out of it"),
        (manifest([{"Config": "/etc/passwd"}]), ManifestInvalid, "lacks the configuration"),
        ([entry("manifest.json", b"[")], ManifestInvalid, "not JSON"),
        ([entry("repositories", b'{"a": 1}')], ManifestInvalid, "not as `docker save` writes it"),
        (
            [entry("repositories", b'{"a": {"1": "../../etc"}}')],
            ManifestInvalid,
            "not as `docker save` writes it",
        ),
        ([entry("etc/motd", b"hello")], ManifestInvalid, "docker export"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_archives_that_are_wrong(
    members: Members, kind: type[GatewayError], why: str, tmp_path: Path, threads: Threads
) -> None:
    """The error names the missing or wrong part of an archive."""
    name = write(tmp_path / "a", members)
    with pytest.raises(kind) as caught:
        await open_text(name, tmp_path, threads)
    assert why in f"{caught.value}"


@pytest_twisted.ensureDeferred
async def test_layers_without_an_end(tmp_path: Path, threads: Threads) -> None:
    """A chain of parents that is a circle ends at the limit on layers."""
    document = {"id": V1, "parent": V1}
    name = write(
        tmp_path / "a",
        [
            entry("repositories", json_bytes({"a": {"1": V1}})),
            entry(f"{V1}/json", json_bytes(document)),
            entry(f"{V1}/layer.tar", LAYERS[0]),
        ],
    )
    with pytest.raises(ImageTooLarge, match="at most 20") as caught:
        await open_text(name, tmp_path, threads, limits=BuildLimits(layers=20))
    assert "MaxLayers" in caught.value.remedy


@pytest_twisted.ensureDeferred
async def test_a_bomb(tmp_path: Path, threads: Threads) -> None:
    """A layer that unpacks to more than the limits is refused, and so is a whole archive."""
    limits = BuildLimits(layers_size=1_000_000)
    bomb = gzip.compress(bytes(5_000_000))
    members = repack(podman(LAYERS, CONFIG, NAMES), lambda _: bomb)
    for content in (tar_of(members), gzip.compress(tar_of({"x": bytes(5_000_000)}))):
        scratch = tmp_path / str(len(content))
        scratch.mkdir()
        name = write(tmp_path / "a", content)
        with pytest.raises(ImageTooLarge, match="more than 1 MB") as caught:
            await open_text(name, scratch, threads, limits=limits)
        assert "MaxLayersSize" in caught.value.remedy


@pytest_twisted.ensureDeferred
async def test_an_archive_that_changes_meanwhile(tmp_path: Path, threads: Threads) -> None:
    """If the file becomes shorter after it was opened, the layer is not passed on as complete."""
    source = await open_text(write(tmp_path / "a", ARCHIVES["podman"]), tmp_path, threads)
    image, _ = await resolve(source)
    (tmp_path / "a").write_bytes(ARCHIVES["podman"][:1000])
    with pytest.raises(BlobCorrupt, match="its manifest says"):
        await content_of(source, image, image.layers[1])
    absent = replace(image.layers[0], digest=Digest("sha256", "0" * 64))
    with pytest.raises(ImageNotFound):
        await content_of(source, image, absent)
