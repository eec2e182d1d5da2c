"""A gateway that composes images of packs converts, and downloads, only layers that are new."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.build.parts import content_of, script
from tests.images import entry, oci_layout, tar_of
from tests.parts import need
from tests.registries import DockerRegistry
from tests.running_service import Service

BASE = [
    tar_of([entry("etc"), entry("etc/motd", b"base"), entry("bin", None, mode=0o700)]),
    tar_of([entry("etc/issue", b"issue" * 1000)]),
]
ABOVE = tar_of([entry("etc/.wh.motd", b""), entry("app", b"app" * 1000)])


def test_an_image_on_a_known_base(tmp_path: Path) -> None:
    """The second image costs one download and one run of `mksquashfs`, and is a whole image.

    The layers of the base are no longer on the machine: their packs stand for them.
    """
    runs = tmp_path / "runs"
    text = f'[ "$1" = - ] && echo >>{runs}; exec {need("mksquashfs")} "$@"'
    changes = {"Mksquashfs": script(tmp_path / "mksquashfs", text)}
    oci_layout(tmp_path / "base", BASE)
    oci_layout(tmp_path / "app", [*BASE, ABOVE])
    with DockerRegistry(tmp_path / "registry") as registry:
        registry.push(tmp_path / "base", "lib/base:1")
        registry.push(tmp_path / "app", "lib/app:1")
        locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
        with Service(tmp_path / "site", locations, changes) as service:
            base = service.pull("lib/base:1")
            assert base["status"] == "READY"
            assert runs.read_text().count("\n") == len(BASE)
            for path in (tmp_path / "site").rglob("sha256/*"):
                path.unlink()  # as after `KeepLayers`; the packs were used later
            downloads = registry.blob_requests()
            app = service.pull("lib/app:1")
            assert app["status"] == "READY"
            assert runs.read_text().count("\n") == len(BASE) + 1
            assert registry.blob_requests() == downloads + 2  # the configuration and the layer
            assert service.leftovers() == []
        image = service.images / f"{app['id']}.squashfs"
        content = content_of(image)
        assert sorted(content) == ["app", "bin", "etc", "etc/issue"]
        assert content["app"][2] == b"app" * 1000
        assert content["etc/issue"][2] == b"issue" * 1000
        summary = subprocess.run(
            [need("unsquashfs"), "-s", image], check=True, capture_output=True, text=True
        )
        assert "Compression gzip" in summary.stdout
