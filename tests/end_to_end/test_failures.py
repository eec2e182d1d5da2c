"""A fault ends a pull as a FAILURE with a reason; it leaves no files and affects no other pull."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.faulty import FaultyRegistry
from tests.images import MadeImage, compress, descriptor, entry, json_bytes, make_image, tar_of
from tests.parts import need, small_disk
from tests.running_service import BOB, Service

WITH_LOGIN = "good:alice:users:secret:2001:2100"
MALLORY = "good:mallory:users:other:2666:2100"


def image(seed: str, size: int = 200_000) -> MadeImage:
    """Return an image of one layer whose incompressible content depends on `seed`."""
    content = os.urandom(size)
    return make_image([tar_of([entry("etc"), entry(f"etc/{seed}", content)])])


def garbage_image() -> MadeImage:
    """Return an image whose layer has the right digests and is not a tar."""
    whole = make_image([b"this is no tar archive, whatever the manifest says. " * 100])
    return MadeImage(whole.manifest, whole.media_type, whole.blobs, whole.architecture)


def lying_image() -> MadeImage:
    """Return an image whose `diff_id` is not that of its unpacked layer."""
    original, tar = image("one"), tar_of([entry("etc/other", b"other")])
    blob = compress(tar)
    document = original.document
    document["layers"] = [descriptor(blob, document["layers"][0]["mediaType"])]
    blobs = {**original.blobs, **make_image([tar]).blobs}
    return MadeImage(json_bytes(document), original.media_type, blobs, original.architecture)


@pytest.fixture(scope="module")
def registry() -> Iterator[FaultyRegistry]:
    """Run a registry with an image for each fault."""
    with FaultyRegistry() as running:
        for fault in ("truncated", "reset", "corrupt", "missing-layer", "401", "404", "500"):
            running.add(f"bad/{fault}", image(fault), fault)
        running.add("bad/garbage", garbage_image())
        running.add("bad/lying", lying_image())
        running.add("good/small", image("small"))
        running.add("good/large", image("large", 4_000_000))
        yield running


def service_at(
    root: Path, registry: FaultyRegistry, changes: dict[str, Any] | None = None
) -> Service:
    """Return a gateway whose default registry is `registry`."""
    need("mksquashfs")
    locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
    return Service(root, locations, changes)


@pytest.fixture(scope="module")
def service(
    registry: FaultyRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a gateway for all faults of the registry."""
    place = tmp_path_factory.mktemp("service")
    with service_at(place, registry, {"RegistryWait": 3}) as running:
        yield running


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("bad/truncated", "registry"),
        ("bad/reset", "registry"),
        ("bad/corrupt", "digest"),
        ("bad/missing-layer", "layer"),
        ("bad/401", "log in"),
        ("bad/404", "no image"),
        ("bad/500", "registry"),
        ("bad/garbage", "layer"),
        ("bad/lying", "layer"),
        ("bad/absent", "no image"),
    ],
)
def test_a_fault_of_the_registry_has_a_reason(service: Service, name: str, word: str) -> None:
    """The answer names the fault, and the gateway still runs.

    Only bytes of a layer that the next pull can resume stay.
    """
    before, earlier_leftovers = set(service.images.iterdir()), set(service.leftovers())
    done = service.pull(f"{name}:1", seconds=90)
    assert done["status"] == "FAILURE"
    reason = f"{done['cause']} {done['remedy']}"
    assert word in reason.lower()
    assert str(service.root) not in reason
    assert done["remedy"]
    leftovers = set(service.leftovers()) - earlier_leftovers
    assert all(leftover.endswith(".partial") for leftover in leftovers)
    assert not leftovers or name in {"bad/truncated", "bad/reset"}
    assert set(service.images.iterdir()) == before
    assert service.get("/livez")[0] == 200
    assert service.lookup(f"{name}:1")[0] == 404


def test_a_failure_does_not_affect_other_users(service: Service, registry: FaultyRegistry) -> None:
    """A pull that failed because its user has no access is tried again at once for another user."""
    registry.add("later/there", image("later"), "404")
    assert service.pull("later/there:1")["status"] == "FAILURE"
    registry.faults["later/there"] = ""
    assert service.pull("later/there:1", BOB)["status"] == "READY"


@pytest.mark.parametrize("fault", ["login", ""])
def test_the_cache_does_not_bypass_the_registry(
    service: Service, registry: FaultyRegistry, fault: str
) -> None:
    """A manifest that names another user's private layer gets none of its bytes.

    The cache has the layer from a pull with another user's login. Only the registry knows who may
    read it.
    """
    leftovers = set(service.leftovers())
    victim = image("private")
    registry.add(f"closed/app{fault}", victim, "login")
    assert service.pull(f"closed/app{fault}:1", WITH_LOGIN)["status"] == "READY"
    layers = {layer["digest"] for layer in victim.document["layers"]}
    config = {digest: blob for digest, blob in victim.blobs.items() if str(digest) not in layers}
    for name, manifest in (
        ("mallory/own", json_bytes({**victim.document, "annotations": {"mallory": fault}})),
        ("mallory/copy", victim.manifest),
    ):
        forged_image = MadeImage(manifest, victim.media_type, config, victim.architecture)
        registry.add(f"{name}{fault}", forged_image, fault)
        answer = service.pull(f"{name}{fault}:1", MALLORY)
        assert answer["status"] == "FAILURE"
        assert any(digest in answer["cause"] for digest in layers)
    assert service.lookup(f"closed/app{fault}:1", MALLORY)[0] == 404
    assert set(service.leftovers()) == leftovers


def test_a_malformed_name_is_an_error_of_the_request(service: Service) -> None:
    """A malformed reference, system or type is refused with a status, and stores no FAILURE."""
    assert service.get("/api/pull/mycluster/docker/UPPER/", method="POST")[0] == 400
    assert service.get("/api/pull/mycluster/docker/a%2F..%2Fb/", method="POST")[0] == 400
    assert service.get("/api/pull/mycluster/nonsense/a:1/", method="POST")[0] in {400, 404}
    assert service.get("/api/pull/elsewhere/docker/a:1/", method="POST")[0] == 404


def script(path: Path, body: str) -> str:
    """Write a program that answers `-version` as mksquashfs does, and otherwise runs `body`."""
    real = need("mksquashfs")
    path.write_text(f'#!/bin/sh\n[ "$1" = -version ] && exec {real} -version\n{body}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "word"),
    [("cat >/dev/null & sleep 0.2; kill -SEGV $$", "signal"), ("exit 3", "mksquashfs")],
)
def test_a_dying_mksquashfs_fails_the_pull(
    registry: FaultyRegistry, tmp_path: Path, body: str, word: str
) -> None:
    """A converter that is killed or exits with an error fails the pull and leaves no file."""
    program = script(tmp_path / "mksquashfs", body)
    with service_at(tmp_path / "service", registry, {"Mksquashfs": program}) as service:
        done = service.pull("good/small:1")
        assert done["status"] == "FAILURE"
        assert word in done["cause"]
        assert service.leftovers() == []
        assert list(service.images.iterdir()) == []


def test_an_image_over_the_limits_is_refused(registry: FaultyRegistry, tmp_path: Path) -> None:
    """An image that unpacks to more than `MaxImageSize` fails before its conversion."""
    with service_at(tmp_path, registry, {"MaxImageSize": 1_000_000}) as service:
        done = service.pull("good/large:1")
        assert done["status"] == "FAILURE"
        assert "more than 1 MB" in done["cause"]
        assert "smaller" in done["remedy"]
        assert service.pull("good/small:1")["status"] == "READY"
        assert service.leftovers() == []


@pytest.mark.parametrize("place", ["images", "expand", "cache"])
def test_a_full_disk_fails_the_pull(registry: FaultyRegistry, tmp_path: Path, place: str) -> None:
    """An image of 4 MB fails on a disk of 2 MB, and its files are removed from that disk."""
    with (
        small_disk(tmp_path / place, "size=2m"),
        service_at(tmp_path, registry) as service,
    ):
        done = service.pull("good/large:1")
        assert done["status"] == "FAILURE"
        text = f"{done['cause']} {done['remedy']}".lower()
        assert "space" in text or "full" in text or "left" in text
        assert service.leftovers() == []
        assert list(service.images.iterdir()) == []
        assert service.pull("good/small:1")["status"] == "READY"
