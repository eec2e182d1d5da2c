"""`DefaultOstCount` and `ostCount` reach the files of an image, and its record."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from sqlite3 import connect
from typing import Any

import pytest

from tests.delivery.far import without_ssh
from tests.images import entry, oci_layout, tar_of
from tests.parts import need
from tests.registries import DockerRegistry
from tests.running_service import SYSTEM, Service

LFS = """#!/bin/sh
echo "$@" >> {log}
exec touch "$4"
"""


@pytest.mark.parametrize("access", ["local", "remote"])
def test_an_image_is_laid_out_as_configured(tmp_path: Path, access: str) -> None:
    """The number is passed to `lfs` on the machine of the files, and recorded as text."""
    need("mksquashfs")
    programs, log = tmp_path / "bin", tmp_path / "lfs.log"
    env = without_ssh(programs)
    (programs / "lfs").write_text(LFS.format(log=log))
    (programs / "lfs").chmod(0o755)
    root = tmp_path / "service"
    system: dict[str, Any] = {"accesstype": access, "squashfs": {"level": 1}}
    if access == "local":
        system |= {"local": {"imageDir": str(root / "images")}}
    else:
        ssh = {"username": "u", "imageDir": str(root / "images"), "transport": "openssh"}
        system |= {"host": ["far"], "ssh": ssh, "ostCount": "3"}
    changes = {"DefaultOstCount": 16, "Platforms": {SYSTEM: system}}
    with DockerRegistry(tmp_path / "data") as registry:
        noise = [tar_of([entry("noise", os.urandom(20_000_000))])]
        oci_layout(tmp_path / "image", noise, compression="plain")
        registry.push(tmp_path / "image", "lib/noise:1")
        locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
        with Service(root, locations, changes, env) as service:
            answer = service.pull("lib/noise:1")
            assert answer["status"] == "READY", (answer, service.log.read_text())
            assert service.leftovers() == []
    count = "16" if access == "local" else "3"
    image = f"{root}/images/{answer['id']}.squashfs"
    assert log.read_text().startswith(f"setstripe -c {count} {image}.partial.")
    with closing(connect(root / "state" / "shiftergw.sqlite")) as store:
        ((document,),) = store.execute("SELECT document FROM images").fetchall()
    assert json.loads(document)["ostcount"] == count
