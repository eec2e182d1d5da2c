"""Pulls from a location that is a directory of the site's, with OCI layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.cli.command import shiftergw
from tests.images import entry, oci_layout, tar_of
from tests.parts import need
from tests.running_service import Service

FIRST = [tar_of([entry("etc"), entry("etc/motd", b"first")])]
SECOND = [tar_of([entry("etc"), entry("etc/motd", b"second")])]


def test_a_directory_serves_pulls(tmp_path: Path) -> None:
    """Images of a directory are pulled by name, tag and digest, and converted without gateway."""
    need("mksquashfs")
    site = tmp_path / "site images"
    digest = oci_layout(site / "team" / "base", FIRST, tag="1")
    locations = {"site": {"remotetype": "oci-layout", "url": site.as_uri()}}
    with Service(tmp_path / "service", locations) as service:
        for name in ("team/base:1", "site/team/base:1", f"site/team/base@{digest}"):
            record = service.pull(name)
            assert (record["status"], record["id"]) == ("READY", digest.hex), record
        assert [path.name for path in service.images.glob("*.squashfs")] == [
            f"{digest.hex}.squashfs"
        ]
        absent = service.pull("site/team/other:1")
        assert absent["status"] == "FAILURE"
        assert absent["cause"] == "site has no repository team/other."
        shutil.rmtree(site / "team" / "base")
        new_digest = oci_layout(site / "team" / "base", SECOND, tag="2")
        assert service.pull("team/base:2")["id"] == new_digest.hex
        out = tmp_path / "out.squashfs"
        result = shiftergw("convert", "--config", str(service.config), "team/base:2", str(out))
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["id"] == new_digest.hex
