"""What a pull would do is looked up as a worker looks it up, and no layer is downloaded."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.app.conversion_parts import ConversionParts
from shiftergw.app.explain import ignore
from shiftergw.config import Config
from shiftergw.errors import BadRequest, ConfigurationError
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import Digest, LayerFile
from shiftergw.plumbing.services import run_services
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry import retry
from tests.app.explain_site import LAYER, SCOPE, STRICT, SYSTEM, Site
from tests.build.site import StoredLayer
from tests.images import oci_layout
from tests.registries import USER


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let quick tries follow at once."""
    monkeypatch.setattr(retry, "pause", lambda _, clock: pause(0, clock))


@pytest_twisted.ensureDeferred
async def test_a_private_image_with_a_login(site: Site) -> None:
    """The layers are counted and not downloaded, and nothing is written on this machine."""
    before = sorted(site.root.iterdir())
    blobs = len(site.registry.blobs_asked_for())
    explanation = await site.explain()
    assert explanation.action == "build"
    assert (explanation.digest, explanation.private) == (str(site.digest), True)
    assert (explanation.user, explanation.source) == (USER.user, "reg")
    (layer,) = explanation.layers
    assert (layer.cached_size, explanation.missing_size) == (0, layer.size)
    assert (explanation.policy, explanation.obstacles) == (None, ())
    assert USER.password not in str(explanation)
    assert layer.digest not in site.registry.blobs_asked_for()[blobs:]
    assert sorted(site.root.iterdir()) == before


@pytest_twisted.ensureDeferred
async def test_a_private_image_without_a_login(site: Site) -> None:
    """A pull fails, and the explanation says who refuses it and what to do."""
    explanation = await site.explain(login=None)
    assert (explanation.action, explanation.digest) == ("fail", "")
    (obstacle,) = explanation.obstacles
    assert obstacle.code == "registry-denied"
    assert "refused team/app to a user without a login" in obstacle.what
    assert "shiftergw login reg" in obstacle.remedy
    assert [place.name for place in explanation.places] == ["reg"]


@pytest_twisted.ensureDeferred
async def test_a_mirror_that_is_unreachable(site: Site, no_pauses: None) -> None:
    """The image comes from the location, and the explanation says why not from the mirror."""
    explanation = await site.explain("mirrored/team/app:1")
    assert (explanation.action, explanation.source) == ("build", "mirrored")
    mirror, origin = explanation.places
    assert (mirror.kind, origin.kind) == ("mirror", "registry")
    assert f"The mirror '{mirror.name}' cannot be reached: connection refused." in mirror.failure
    assert origin.failure == ""


@pytest_twisted.ensureDeferred
async def test_a_registry_that_is_unreachable(site: Site, no_pauses: None) -> None:
    """A pull waits for it; the explanation names the registry as the culprit."""
    explanation = await site.explain("away/team/app:1")
    assert explanation.action == "wait"
    (obstacle,) = explanation.obstacles
    assert obstacle.what == "The registry 'away' cannot be reached: connection refused."
    assert obstacle.reason == "away (unreachable)"
    assert obstacle.retry_at is not None
    assert explanation.places[0].name == "away"


@pytest_twisted.ensureDeferred
async def test_a_breaker_that_is_open(site: Site) -> None:
    """An open breaker is reported at once, with its time, and no request is sent."""
    port = site.config.locations["away"].url.rpartition(":")[2]
    key = f"unreachable 127.0.0.1:{port} {socket.gethostname()}"
    now = reactor.seconds()
    async with site.database() as store:
        await store.trip_breaker(key, now + 500, "away (unreachable)", now)
    explanation = await site.explain("away/team/app:1")
    assert (explanation.action, site.lines) == ("wait", [])
    assert explanation.obstacles[0].retry_at == now + 500
    async with site.database() as store:
        await store.trip_breaker(key, now + 5000, "away (unreachable)", now)
    explanation = await site.explain("away/team/app:1")
    assert explanation.action == "fail"
    assert "`RegistryWait`" in explanation.obstacles[0].remedy


@pytest_twisted.ensureDeferred
async def test_a_policy_that_refuses_the_image(site: Site) -> None:
    """The verdict is shown, and the error that a pull would end with."""
    explanation = await site.explain(system=STRICT)
    assert explanation.action == "fail"
    assert explanation.policy is not None
    assert not explanation.policy.is_accepted
    (obstacle,) = explanation.obstacles
    assert obstacle.code == "image-refused"
    assert "The policy of strict does not accept" in obstacle.what
    assert "policy.json" in obstacle.detail
    (site.root / "policy.json").write_text("{")
    explanation = await site.explain(system=STRICT)
    assert (explanation.action, explanation.policy) == ("fail", None)
    assert "every image is refused" in explanation.obstacles[0].what


@pytest_twisted.ensureDeferred
async def test_a_delivered_image(site: Site) -> None:
    """The record and the file count; another system of the directory has the file, too."""
    await site.deliver(report={"seconds": {"PULLING": 3.0}})
    explanation = await site.explain()
    assert explanation.action == "prove"
    image = explanation.delivered_image
    assert image is not None
    assert (image.size, image.private, image.seconds) == (5, True, {"PULLING": 3.0})
    await site.deliver(private=False, user_acl=())
    assert (await site.explain()).action == "reuse"
    (site.images / f"{site.digest.hex}.squashfs").write_bytes(b"short")
    (site.images / f"{site.digest.hex}.squashfs").write_bytes(b"cut")
    explanation = await site.explain()
    assert (explanation.action, explanation.delivered_image) == ("build", None)


@pytest_twisted.ensureDeferred
async def test_an_image_that_was_taken_down(site: Site) -> None:
    """A pull fails although the registry has the image."""
    async with site.database() as store:
        await store.block(str(site.images), site.digest.hex, 0, 1.0)
    explanation = await site.explain()
    assert (explanation.action, explanation.digest) == ("fail", str(site.digest))
    assert [obstacle.code for obstacle in explanation.obstacles] == ["image-blocked"]


@pytest_twisted.ensureDeferred
async def test_layers_in_the_cache(site: Site) -> None:
    """A layer of a private repository counts in the cache of that repository, also in part."""
    (layer,) = (await site.explain()).layers
    name = layer.digest.partition(":")[2]
    for directory in (site.root / "cache", site.root / "cache" / "private" / "x"):
        (directory / "sha256").mkdir(parents=True)
        (directory / "sha256" / name).write_bytes(bytes(layer.size))
    assert (await site.explain()).layers[0].cached_size == 0
    origin = Digest.of(b"reg\nteam/app").hex[:32]
    own = site.root / "cache" / "private" / origin / "sha256"
    own.mkdir(parents=True)
    (own / f"{name}.partial").write_bytes(b"abc")
    explanation = await site.explain()
    assert explanation.layers[0].cached_size == 3
    assert explanation.missing_size == layer.size - 3


class KnownLayer(StoredLayer):
    """A layer with the digest of another file, which has the same content."""

    def __init__(self, path: Path, digest: Digest) -> None:
        """Give a file under a digest."""
        super().__init__(LayerFile(path, Digest.of(LAYER)))
        self._digest = digest

    @property
    def digest(self) -> Digest:
        """Return the digest."""
        return self._digest


@pytest_twisted.ensureDeferred
async def test_layers_with_packs(site: Site) -> None:
    """A layer whose pack is in its own place need not be downloaded, nor have room.

    The explanation does not count as a use of the pack.
    """
    (layer,) = (await site.explain()).layers
    config, whole_config = (
        Config.from_document(
            {**site.document, "Builder": builder}, base=site.root, environ={}
        ).config
        for builder in ("packs", "whole")
    )
    options = config.systems[SYSTEM].squash_options(config)
    file = site.root / "layer"
    file.write_bytes(LAYER)
    parts = ConversionParts(reactor, config)
    place = site.root / "cache" / "private" / Digest.of(b"reg\nteam/app").hex[:32] / "packs"
    stored_layer = KnownLayer(file, Digest.parse(layer.digest))
    arguments: Any = ("0" * 64, 0, [stored_layer], options, BuildLimits(), ignore, ignore, place)
    async with run_services([parts.threads, parts.readers]), parts.builder.build(*arguments):
        pass
    (sidecar,) = place.glob("*.index")
    os.utime(sidecar, (1, 1))
    site.config = whole_config
    assert (await site.explain()).layers[0].cached_size == 0  # this builder needs the layer
    site.config = config
    explanation = await site.explain()
    assert (explanation.layers[0].cached_size, explanation.missing_size) == (layer.size, 0)
    assert explanation.action == "build"
    assert sidecar.stat().st_mtime == 1


@pytest_twisted.ensureDeferred
async def test_a_directory_with_layouts(site: Site) -> None:
    """The place is the directory, and images of a layout are explained like others."""
    digest = oci_layout(site.root / "layouts" / "tools", [LAYER], tag="1")
    explanation = await site.explain("files/tools:1", login=None)
    assert (explanation.action, explanation.digest) == ("build", str(digest))
    (place,) = explanation.places
    assert (place.kind, place.url) == ("directory", str(site.root / "layouts"))


@pytest_twisted.ensureDeferred
async def test_a_system_whose_directory_is_gone(site: Site) -> None:
    """The delivery would fail; what the registry says is shown all the same."""
    site.images.rmdir()
    explanation = await site.explain()
    assert (explanation.action, explanation.digest) == ("fail", str(site.digest))
    assert [obstacle.code for obstacle in explanation.obstacles] == ["delivery-failed"]


@pytest_twisted.ensureDeferred
async def test_a_host_that_is_no_location(site: Site) -> None:
    """A host without a location is refused as by the gateway."""
    with pytest.raises(BadRequest, match=f"no registry {SCOPE}"):
        await site.explain(f"{SCOPE}/app:1")


@pytest_twisted.ensureDeferred
async def test_another_user_than_the_gateway(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, too, would leave files behind that the gateway cannot write."""
    async with site.database():
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(ConfigurationError, match=r"StateDirectory: .* belongs to another user"):
        await site.explain()
