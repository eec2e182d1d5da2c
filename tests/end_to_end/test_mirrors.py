"""Pulls of a running gateway from a mirror, and by the rules of registries.conf."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.command import shiftergw
from tests.images import oci_layout, tar_of
from tests.parts import need
from tests.registries import DockerRegistry
from tests.running_service import BOB, SYSTEM, Service


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Service, DockerRegistry, DockerRegistry]]:
    """Run a gateway, a registry, and a pull-through cache of it that is its mirror."""
    need("mksquashfs")
    root = tmp_path_factory.mktemp("mirrors")
    with DockerRegistry(root / "origin") as origin:
        oci_layout(root / "image", [tar_of({"etc/motd": b"hello"})], tag="1")
        for name in ("team/app:1", "team/moved:1"):
            origin.push(root / "image", name, tag="1")
        with DockerRegistry(root / "cache", mirrored_url=f"http://{origin.host}") as cache:
            rules = root / "registries.conf"
            rules.write_text(
                '[[registry]]\nprefix = "old.example.org"\n'
                f'location = "{origin.host}"\ninsecure = true\n'
                '[[registry]]\nlocation = "bad.example.org"\nblocked = true\n'
            )
            locations = {
                "reg": {
                    "remotetype": "dockerv2",
                    "url": f"http://{origin.host}",
                    "mirrors": [f"http://{cache.host}"],
                }
            }
            with Service(root / "gateway", locations, {"RegistriesConf": str(rules)}) as service:
                yield service, origin, cache


def request(service: Service, image: str) -> tuple[int, Any]:
    """Request a pull once; return the status and the answer."""
    return service.get(f"/api/pull/{SYSTEM}/docker/{image}/", method="POST")


def test_a_pull_from_a_mirror(servers: tuple[Service, DockerRegistry, DockerRegistry]) -> None:
    """The layers come from the mirror, and the log says so."""
    service, _, cache = servers
    answer = service.pull("team/app:1")
    assert answer["status"] == "READY"
    assert cache.blob_requests() == 2
    service.log_with(f"comes from the mirror {cache.host}")


def test_an_explanation(servers: tuple[Service, DockerRegistry, DockerRegistry]) -> None:
    """The explanation shows the mirror, the delivery, and its duration."""
    service, _, cache = servers
    assert service.pull("team/app:1")["status"] == "READY"
    count = cache.blob_requests()
    arguments = ("explain", "--config", str(service.config), "--system", SYSTEM, "team/app:1")
    result = shiftergw(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    explanation = json.loads(result.stdout)
    assert (explanation["action"], explanation["source"]) == ("reuse", cache.host)
    assert [place["name"] for place in explanation["places"]] == [cache.host, "reg"]
    assert explanation["missing_size"] == 0
    delivery = explanation["delivered_image"]
    assert {"PULLING", "TRANSFER"} <= delivery["seconds"].keys()
    assert f"{delivery['id']}.squashfs" in [file.name for file in service.images.iterdir()]
    assert cache.blob_requests() <= count + 1  # the configuration
    user = {"SHIFTERGW_GATEWAY": service.url, "SHIFTERGW_CREDENTIAL": BOB}
    result = shiftergw("explain", "--system", SYSTEM, "team/app:1", "--json", env=user)
    assert result.returncode == 0, result.stderr
    explanation = json.loads(result.stdout)
    assert (explanation["action"], explanation["directory"]) == ("reuse", SYSTEM)
    service.log_with("explained team/app:1 on mycluster to uid 2002")


def test_a_pull_by_registries_conf(
    servers: tuple[Service, DockerRegistry, DockerRegistry],
) -> None:
    """A name of registries.conf leads to its location, and a blocked one is refused."""
    service, _, cache = servers
    count = cache.blob_requests()
    answer = service.pull("Old.example.org/team/moved:1")
    assert answer["status"] == "READY"
    assert "old.example.org/team/moved:1" in answer["tag"]
    assert cache.blob_requests() == count
    code, refusal = request(service, "bad.example.org/x:1")
    assert (code, "blocked" in refusal["error"]) == (403, True)


def test_an_unknown_registry(servers: tuple[Service, DockerRegistry, DockerRegistry]) -> None:
    """The answer lists the registries that there are."""
    service, _, _ = servers
    code, refusal = request(service, "other.example.org/x:1")
    assert code == 400
    assert "no registry other.example.org. It has reg; its admins can add" in refusal["error"]
