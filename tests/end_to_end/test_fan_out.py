"""A gateway for several systems: one download, one conversion, and no system waits for another."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.cli.command import shiftergw
from tests.images import entry, oci_layout, tar_of
from tests.parts import need
from tests.registries import DockerRegistry
from tests.running_service import ALICE, FINAL, POLL_PAUSE, Service, until
from tests.sshd import Sshd

LOCAL, NEAR, REMOTE = SYSTEMS = ("here", "near", "far")
"""A local system and two remote ones; `far` is down in some tests."""

SECONDS = 60.0
WAITS = "its host does not answer"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Run a registry."""
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@dataclass(frozen=True)
class Image:
    """An image in the registry: its id, and the digests of its layers."""

    id: str
    layers: Sequence[str]


@pytest.fixture
def image(registry: DockerRegistry, tmp_path: Path) -> Image:
    """Push a new image as `lib/app:1`."""
    layers = [tar_of([entry(f"data/{n}", os.urandom(100_000))]) for n in range(3)]
    image_id = oci_layout(tmp_path / "layout", layers, config={"Env": ["A=1"]}).hex
    registry.push(tmp_path / "layout", "lib/app:1")
    manifest = json.loads((tmp_path / "layout" / "blobs" / "sha256" / image_id).read_bytes())
    return Image(image_id, [layer["digest"] for layer in manifest["layers"]])


@pytest.fixture(scope="module")
def near() -> Iterator[Sshd]:
    """Run the SSH server of a system."""
    with Sshd() as running:
        yield running


@pytest.fixture(scope="module")
def remote() -> Iterator[Sshd]:
    """Run the SSH server of another system."""
    with Sshd() as running:
        yield running


class Site:
    """A gateway for the three systems, with counts of its downloads and of converted layers."""

    def __init__(
        self,
        root: Path,
        registry: DockerRegistry,
        sshds: Mapping[str, Sshd],
        changes: Mapping[str, Any],
    ) -> None:
        """Write the configuration with `changes`; `sshds` are the servers of the remote systems."""
        self.images = {system: root / system for system in SYSTEMS}
        self._registry = registry
        self._runs = root / "runs"
        for directory in self.images.values():
            directory.mkdir(parents=True)
        common: dict[str, Any] = {"squashfs": {"compressor": "gzip", "level": 1}}
        platforms: dict[str, Any] = {
            LOCAL: {"accesstype": "local", "local": {"imageDir": str(self.images[LOCAL])}, **common}
        }
        for system, sshd in sshds.items():
            ssh = {
                "username": sshd.user,
                "imageDir": str(self.images[system]),
                "key": str(sshd.key),
                "port": sshd.port,
                "knownHosts": str(sshd.known_hosts),
                "sshCmdOptions": ["-o", "ConnectTimeout=5"],
            }
            platforms[system] = {
                "accesstype": "remote",
                "host": ["127.0.0.1"],
                "ssh": ssh,
                **common,
            }
        locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
        own = {"Platforms": platforms, "Mksquashfs": str(self._counting(root))}
        self.service = Service(root / "service", locations, {**own, **changes})

    def _counting(self, root: Path) -> Path:
        """Return a `mksquashfs` that records each conversion."""
        program = root / "counting"
        program.write_text(
            f"#!/bin/sh\n[ \"$1\" = -version ] || echo $$ >> '{self._runs}'\n"
            f'exec {need("mksquashfs")} "$@"\n'
        )
        program.chmod(0o755)
        return program

    def conversions(self) -> int:
        """Return how many layers were converted."""
        return len(self._runs.read_text().splitlines()) if self._runs.exists() else 0

    def downloads(self, image: Image) -> list[int]:
        """Return the number of requests for each layer of an image, the lowest layer first."""
        digests = self._registry.blobs_asked_for()
        return [digests.count(layer) for layer in image.layers]

    def poll(self, system: str, name: str = "lib/app:1") -> dict[str, Any]:
        """Request a pull once."""
        path = f"/api/pull/{system}/docker/{quote(name, safe='')}/"
        status, body = self.service.get(path, ALICE, "POST")
        assert status == 200, (status, body)
        answer: dict[str, Any] = body
        return answer

    def end(self, system: str, name: str = "lib/app:1") -> dict[str, Any]:
        """Return the last answer of a pull after its end."""

        def final_answer() -> dict[str, Any] | None:
            answer = self.poll(system, name)
            return answer if answer["status"] in FINAL else None

        return until(final_answer, SECONDS, f"the end of the pull for {system}", POLL_PAUSE)

    def ready(self, *systems: str) -> str:
        """Return the image id of finished pulls, which must be the same on all systems."""
        for system in systems:
            self.poll(system)
        ends = [self.end(system) for system in systems]
        assert [end["status"] for end in ends] == ["READY"] * len(systems), ends
        (image_id,) = {end["id"] for end in ends}
        return str(image_id)

    def files(self, system: str, image_id: str) -> tuple[bytes, bytes]:
        """Return the image and the metadata on a system, which must have no other file."""
        names = [f"{image_id}.squashfs", f"{image_id}.meta"]
        assert sorted(path.name for path in self.images[system].iterdir()) == sorted(names)
        image, meta = ((self.images[system] / name).read_bytes() for name in names)
        return image, meta

    def pull(self, *systems: str) -> subprocess.CompletedProcess[str]:
        """Run `shiftergw pull` for several systems."""
        variables = {"SHIFTERGW_GATEWAY": self.service.url, "SHIFTERGW_CREDENTIAL": ALICE}
        return shiftergw("pull", "--system", ",".join(systems), "lib/app:1", env=variables)


@pytest.fixture
def site(
    registry: DockerRegistry,
    near: Sshd,
    remote: Sshd,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Site]:
    """Run the gateway, with two workers; a parameter changes its configuration."""
    changes = getattr(request, "param", {})
    site = Site(tmp_path / "site", registry, {NEAR: near, REMOTE: remote}, changes)
    with site.service:
        yield site


@contextmanager
def silent(sshd: Sshd) -> Iterator[None]:
    """Make a server accept connections without an answer for a while."""
    sshd.stop()
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", sshd.port))
        listening.listen()
        try:
            yield
        finally:
            listening.close()
            sshd.start()


@contextmanager
def outage(sshd: Sshd) -> Iterator[None]:
    """Stop a server for a while."""
    sshd.stop()
    try:
        yield
    finally:
        sshd.start()


def test_one_download_and_one_conversion(site: Site, image: Image) -> None:
    """Three systems get the same bytes from one download and one conversion."""
    image_id = site.ready(*SYSTEMS)
    assert site.downloads(image) == [1, 1, 1]
    assert site.conversions() == len(image.layers)
    contents = {site.files(system, image_id) for system in SYSTEMS}
    assert len(contents) == 1
    assert site.service.leftovers() == []


@pytest.mark.slow
def test_a_silent_system_delays_no_other(site: Site, image: Image, remote: Sshd) -> None:
    """Pulls of other systems end READY; later the silent system needs only the delivery."""
    with silent(remote):
        site.poll(REMOTE)
        until(
            lambda: WAITS in site.poll(REMOTE)["status_message"],
            SECONDS,
            "that its pull waits",
            POLL_PAUSE,
        )
        image_id = site.ready(LOCAL, NEAR)
        assert site.poll(REMOTE)["status"] == "PENDING"
    assert list(site.images[REMOTE].iterdir()) == []
    _is_served_again(site, image, image_id)


@pytest.mark.parametrize("site", [{"DeliveryWait": 0}], indirect=True, ids=["DeliveryWait=0"])
@pytest.mark.slow
def test_a_system_that_is_down_delays_no_other(site: Site, image: Image, remote: Sshd) -> None:
    """Without `DeliveryWait` the pull fails with the reason; a later pull is READY."""
    with outage(remote):
        for system in (REMOTE, LOCAL, NEAR):
            site.poll(system)
        image_id = site.ready(LOCAL, NEAR)
        answer = site.end(REMOTE)
        done = site.pull(*SYSTEMS)
    assert answer["status"] == "FAILURE"
    assert WAITS in answer["status_message"]
    assert (done.returncode, done.stdout) == (1, f"{LOCAL}: {image_id}\n{NEAR}: {image_id}\n")
    lines = [line for line in done.stderr.splitlines() if line.startswith(f"{REMOTE}: ")]
    assert any(WAITS in line for line in lines)
    assert any("DeliveryWait" in line for line in lines)
    _is_served_again(site, image, image_id)


def _is_served_again(site: Site, image: Image, image_id: str) -> None:
    """Check that a system that is up again needs neither a download nor a conversion."""
    downloads, conversions = site.downloads(image), site.conversions()
    assert (downloads, conversions) == ([1, 1, 1], len(image.layers))

    def is_ready() -> bool:  # at first the answer repeats the failure
        return bool(site.end(REMOTE)["status"] == "READY")

    until(is_ready, SECONDS, "the delivery after all", POLL_PAUSE)
    assert (site.downloads(image), site.conversions()) == (downloads, conversions)
    assert site.files(REMOTE, image_id) == site.files(LOCAL, image_id)


def test_many_pulls_for_a_silent_system(
    site: Site, image: Image, registry: DockerRegistry, remote: Sshd, tmp_path: Path
) -> None:
    """Pulls for a silent system leave workers free: a pull for another system ends READY."""
    names = ["lib/app:1", "lib/app:2", "lib/app:3"]
    for name in names[1:]:
        registry.push(tmp_path / "layout", name)
    with silent(remote):
        for name in names:
            site.poll(REMOTE, name)
        image_id = site.ready(LOCAL)
        answers = [site.poll(REMOTE, name) for name in names]
    assert {answer["status"] for answer in answers} <= {"PULLING", "PENDING"}
    assert site.files(LOCAL, image_id)[0].startswith(b"hsqs")
    assert site.downloads(image) == [1, 1, 1]


def test_the_command_waits_for_all(site: Site, image: Image) -> None:
    """`shiftergw pull --system a,b,c` ends when all pulls are READY, and prints each id."""
    done = site.pull(*SYSTEMS)
    assert done.stdout == "".join(f"{system}: {image.id}\n" for system in SYSTEMS), done.stderr
    assert done.returncode == 0
    assert {f"{system}: Done" for system in SYSTEMS} <= set(done.stderr.splitlines())
    assert (site.downloads(image), site.conversions()) == ([1, 1, 1], len(image.layers))
