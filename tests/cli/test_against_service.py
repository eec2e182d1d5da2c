"""A user's and an admin's day on the command line: the real service, munge, a private registry."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftergw.oci.meta import read_meta
from tests.cli.command import IMPORTER
from tests.cli.homes import Home
from tests.images import entry, oci_layout, tar_of
from tests.munged import MungeDaemon
from tests.parts import need
from tests.registries import USER, DockerRegistry
from tests.running_service import SYSTEM, Service, until

IMAGE = "closed/lib/app:1"
LOGIN = ("login", "closed", "--username", USER.user, "--password-stdin")
NAMES = {"SHIFTERGW_SYSTEM": SYSTEM}


@pytest.fixture
def service(tmp_path: Path, munged: MungeDaemon) -> Iterator[Service]:
    """Run the gateway of a system whose admin is the user of the tests."""
    need("mksquashfs")
    with DockerRegistry(tmp_path / "registry", private=True) as registry:
        oci_layout(tmp_path / "layout", [tar_of([entry("etc"), entry("etc/name", b"app")])])
        registry.push(tmp_path / "layout", "lib/app:1")
        images = tmp_path / "service" / "images"
        platform = {
            "accesstype": "local",
            "mungeSocketPath": str(munged.socket),
            "admins": [os.getuid()],
            "squashfs": {"compressor": "gzip", "level": 1},
            "local": {"imageDir": str(images)},
        }
        changes = {
            "Authentication": "munge",
            "Metrics": True,
            "FailureHold": 1,
            "Platforms": {SYSTEM: platform},
        }
        locations = {"closed": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
        with Service(tmp_path / "service", locations, changes) as running:
            yield running


@pytest.mark.slow
def test_a_day(service: Service, tmp_path: Path, munged: MungeDaemon) -> None:
    """Log in, pull, look up, take down, allow, expire: each sees the effects of the others."""
    home = Home(tmp_path, munged, {**NAMES, "SHIFTERGW_GATEWAY": service.url})
    assert home.run(*LOGIN, stdin=USER.password.encode())[0] == 0
    code, out, errors = home.run("pull", "--user", "2002,nobody", "--user", "7", IMAGE)
    assert code == 0, errors
    image_id = out.decode().strip()
    files = [service.images / f"{image_id}.{kind}" for kind in ("squashfs", "meta")]
    assert all(file.exists() for file in files)
    readers = read_meta(files[1].read_bytes()).user_acl or ()
    assert set(readers) >= {2002, 65534, 7}

    assert home.run("lookup", IMAGE)[1] == out
    conf = tmp_path / "client.conf"
    conf.write_text(
        f"imageGateway = {service.url}\nsystem = {SYSTEM}\nimagePath = {service.images}\n"
        f"mungeSocket = {munged.socket}\n"
    )
    job = Home(tmp_path, munged, {"SHIFTERGW_CLIENT_CONF": str(conf)}, IMPORTER)
    assert job.run("get", f"docker://{IMAGE}") == (0, f"{files[0]}\n".encode(), b"")
    assert image_id[:10] in home.run("images")[1].decode()
    code, rows, errors = home.run("metrics", "--limit", "5")
    assert code == 0, errors
    assert [line.split()[-1] for line in rows.decode().splitlines()] == [f"docker:{IMAGE}"]

    code, out, errors = home.run("rm", "--now", image_id)
    assert code == 0, errors
    assert out.decode().splitlines()[0] == f"docker:{IMAGE} is removed."
    assert home.run("lookup", IMAGE)[0] == 4
    code, _, errors = home.run("pull", IMAGE)
    assert code == 1
    assert b"taken" in errors

    assert home.run("rm", "--allow", image_id)[0] == 0
    assert home.run("rm", "--allow", image_id)[0] == 4
    # Until then the gateway still reports the failure.
    until(lambda: home.run("pull", IMAGE)[0] == 0, 30, "the end of the hold of a failure")
    assert home.run("lookup", IMAGE)[1].decode().strip() == image_id
    assert home.run("autoexpire")[:2] == (0, b"")
    assert home.run("expire", IMAGE)[1].decode() == f"docker:{IMAGE} is expired.\n"
    assert home.run("expire", IMAGE)[0] == 4

    assert home.run("logout", "closed")[0] == 0
    code, out, errors = home.run("pull", IMAGE)
    assert (code, out) == (1, b""), errors
    assert b"Log in" in errors
    assert USER.password.encode() not in errors
    assert USER.password not in service.log.read_text()
