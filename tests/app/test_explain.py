"""What a pull would do is looked up as a worker looks it up, and no layer is downloaded."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from shiftergw.app import explain_limits as limits
from shiftergw.app.compose import state_file
from shiftergw.app.explain import explain_image
from shiftergw.app.explain_limits import LookUpPlace
from shiftergw.config import Config
from shiftergw.errors import BadRequest, ConfigurationError, TimedOut
from shiftergw.image import Digest
from shiftergw.model import ImageReference, Origin, PullRequest, RegistryLogin, Session
from shiftergw.model.explanations import ExplainRequest, Explanation
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry import retry
from shiftergw.store.sqlite.store import SqliteStore
from tests.images import oci_layout, tar_of
from tests.parts import free_port
from tests.patience import patient
from tests.registries import USER, DockerRegistry
from tests.store.pulls import complete_pull

SYSTEM, STRICT = "mycluster", "strict"
LAYER = tar_of({"etc/motd": b"hello"})
SCOPE = "reg.example.org"


class Site:
    """A private registry, and the configuration of a gateway that has never run."""

    def __init__(self, root: Path, registry: DockerRegistry, digest: Digest) -> None:
        """Keep the parts; `digest` is that of the image `team/app:1`."""
        self.root = root
        self.registry = registry
        self.digest = digest
        self.images = root / "images"
        self.images.mkdir()
        self.lines: list[str] = []
        policy = root / "policy.json"
        policy.write_text(json.dumps({"default": [{"type": "reject"}]}))
        system = {"accesstype": "local", "local": {"imageDir": str(self.images)}}
        dead_url = f"http://127.0.0.1:{free_port()}"
        urls = {"reg": f"http://{registry.host}", "away": dead_url}
        self.document: dict[str, Any] = {
            "Authentication": "mock",
            "DefaultImageLocation": "reg",
            "StateDirectory": str(root / "state"),
            "CacheDirectory": str(root / "cache"),
            "ExpandDirectory": str(root / "expand"),
            "Locations": {
                **{name: {"remotetype": "dockerv2", "url": url} for name, url in urls.items()},
                "mirrored": {"remotetype": "dockerv2", "url": urls["reg"], "mirrors": [dead_url]},
                "files": {"remotetype": "oci-layout", "url": f"file://{root}/layouts"},
            },
            "Platforms": {SYSTEM: system, STRICT: {**system, "policy_file": str(policy)}},
        }
        self.config = Config.from_document(self.document, base=root, environ={}).config

    async def explain(
        self, image: str = "team/app:1", system: str = SYSTEM, login: RegistryLogin | None = USER
    ) -> Explanation:
        """Explain a pull."""
        request = ExplainRequest(ImageReference.parse(image), system, login)
        return await explain_image(reactor, self.config, request, self.lines.append)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[SqliteStore]:
        """Open the database of the gateway, which is made if necessary."""
        self.config.state_directory.mkdir(mode=0o700, exist_ok=True)
        Seal.from_file(self.config.secret_key_file)
        store = SqliteStore(reactor, state_file(self.config))
        await store.startService()
        try:
            yield store
        finally:
            await store.stopService()

    async def deliver(self, **members: Any) -> None:
        """Write the image's file and its record."""
        (self.images / f"{self.digest.hex}.squashfs").write_bytes(b"x" * 5)
        pull = PullRequest(SYSTEM, "docker", ImageReference.parse("team/app:1"), 7)
        members = {"private": True, "user_acl": (7,), "size": 5, **members}
        origin = Origin("reg", "team/app", str(self.digest), members["private"])
        async with self.database() as store:
            await complete_pull(store, pull, self.digest.hex, origin=origin, **members)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DockerRegistry, Digest]]:
    """Run a private registry that has `team/app:1`."""
    root = tmp_path_factory.mktemp("registry")
    digest = oci_layout(root / "image", [LAYER])
    with DockerRegistry(root / "data", private=True) as server:
        server.push(root / "image", "team/app:1")
        yield server, digest


@pytest.fixture
def site(tmp_path: Path, registry: tuple[DockerRegistry, Digest]) -> Site:
    """Return a site for one test."""
    return Site(tmp_path, *registry)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let quick tries follow at once."""
    monkeypatch.setattr(retry, "pause", lambda _, clock: pause(0, clock))


@pytest_twisted.ensureDeferred
async def test_a_private_image_with_a_login(site: Site) -> None:
    """Its layers are counted and not downloaded, and nothing is written on this machine."""
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
    """It is reported at once, with its time, and no request is sent."""
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


@pytest_twisted.ensureDeferred
async def test_a_directory_with_layouts(site: Site) -> None:
    """Its place is the directory, and its images are explained like others."""
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
    """It is refused as the gateway refuses it."""
    with pytest.raises(BadRequest, match=f"no registry {SCOPE}"):
        await site.explain(f"{SCOPE}/app:1")


@pytest_twisted.ensureDeferred
async def test_a_registry_that_hangs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-ups end in time, and it is not said that a pull would fail."""
    monkeypatch.setattr(limits, "REGISTRY", LookUpPlace("The registry", 0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        location = site.config.locations["away"]
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        site.config.locations["away"] = location.model_copy(update={"url": url})
        explanation = await site.explain("away/app:1")
    assert explanation.action == "unknown"
    (obstacle,) = explanation.obstacles
    assert obstacle.code == "timed-out"
    assert "The registry did not answer in time: a look-up may take 0.3 s" in obstacle.what


@pytest_twisted.async_yield_fixture
async def hang(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[str, str], None]]:
    """Return what makes a blocking function hang, in a place that has little time."""
    release = Event()
    calls_before = set(reactor.getDelayedCalls())

    def begin(place: str, function: str) -> None:
        name = getattr(limits, place).name
        monkeypatch.setattr(limits, place, LookUpPlace(name, 0.2))
        monkeypatch.setattr(limits, "STOP_SECONDS", 0.1)
        monkeypatch.setattr(function, lambda *_: release.wait(patient(60)))

    yield begin
    release.set()
    while set(reactor.getDelayedCalls()) - calls_before:  # those of calls that were left behind
        await pause(0, reactor)


@pytest.mark.parametrize(
    "function",
    ["shiftergw.cache.blobs.present_sizes", "shiftergw.build.converted.ConvertedFiles.exist"],
)
@pytest_twisted.ensureDeferred
async def test_a_cache_that_hangs(
    site: Site, hang: Callable[[str, str], None], function: str
) -> None:
    """The rest is looked up; a pull of a delivered image needs no cache."""
    hang("CACHE", function)
    explanation = await site.explain()
    assert (explanation.action, explanation.digest) == ("unknown", str(site.digest))
    assert [layer.cached_size for layer in explanation.layers] == [None]
    (obstacle,) = explanation.obstacles
    assert "The cache did not answer in time: a look-up may take 0.2 s" in obstacle.what
    await site.deliver(private=False, user_acl=())
    explanation = await site.explain()
    assert (explanation.action, len(explanation.obstacles)) == ("reuse", 1)


@pytest.mark.parametrize(
    ("place", "function"),
    [
        ("DIRECTORY", "shiftergw.delivery.local_files.installed_file"),
        ("POLICY", "shiftergw.job.policy.read_policy"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_disk_that_hangs(
    site: Site, hang: Callable[[str, str], None], place: str, function: str
) -> None:
    """What a pull would do is unknown, and the explanation says why."""
    await site.deliver()
    hang(place, function)
    explanation = await site.explain(system=SYSTEM if place == "DIRECTORY" else STRICT)
    assert (explanation.action, explanation.digest) == ("unknown", str(site.digest))
    (obstacle,) = explanation.obstacles
    assert obstacle.what.startswith(f"{getattr(limits, place).name} did not answer in time")


@pytest_twisted.ensureDeferred
async def test_a_database_that_hangs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked only once."""
    await site.deliver()
    calls: list[str] = []

    async def find_work(_: Any, *arguments: str) -> None:
        calls.extend(arguments)
        await Deferred()

    monkeypatch.setattr(limits, "DATABASE", LookUpPlace("The database", 0.2))
    monkeypatch.setattr(SqliteStore, "find_work", find_work)
    explanation = await site.explain()
    assert (explanation.action, explanation.digest) == ("unknown", str(site.digest))
    assert [o.what.partition(":")[0] for o in explanation.obstacles] == [
        "The database did not answer in time"
    ]
    assert calls == [SYSTEM, "docker", "team/app:1"]


@pytest.mark.parametrize(
    ("place", "function"),
    [
        ("GATEWAY_FILES", "shiftergw.app.explain_adapters._check_user"),
        ("DATABASE_START", "shiftergw.store.sqlite.integrity.open_database"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_state_directory_that_hangs(
    site: Site, hang: Callable[[str, str], None], place: str, function: str
) -> None:
    """Nothing can be explained, and the error says so in time."""
    await site.deliver()
    hang(place, function)
    with pytest.raises(TimedOut, match=r"did not answer in time: a look-up may take 0\.2 s"):
        await site.explain()


def test_a_process_with_a_thread_that_hangs(site: Site) -> None:
    """It prints the explanation of the rest, and ends."""
    code = """
import threading
from shiftergw.app import explain_limits
from shiftergw.cache import blobs

explain_limits.CACHE = explain_limits.LookUpPlace("The cache", 0.1)
explain_limits.STOP_SECONDS = 0.1
blobs.present_sizes = lambda *_: threading.Event().wait()

from shiftergw.app.explainer import main
main()
"""
    file = site.root / "config.json"
    file.write_text(json.dumps(site.document))
    reader = Session(SYSTEM, "bob", 8, "", -1, frozenset())
    request = ExplainRequest(ImageReference.parse("team/app:1"), STRICT, USER, reader)
    result = subprocess.run(
        [sys.executable, "-c", code, "--config", str(file)],
        input=json.dumps(request.to_document()).encode(),
        capture_output=True,
        timeout=patient(60),
        check=False,
    )
    assert result.returncode == 0
    explanation = json.loads(result.stdout)
    assert [obstacle["code"] for obstacle in explanation["obstacles"]] == [
        "image-refused",
        "timed-out",
    ]
    # Details for the log of the gateway, which its user does not see.
    refusal, late = result.stderr.decode().splitlines()
    assert str(site.root / "policy.json") in refusal
    assert str(site.root) not in result.stdout.decode()
    assert late.startswith("timed-out: The cache did not answer in time")


def test_a_process_whose_gateway_is_gone(site: Site) -> None:
    """It ends by itself, whatever it does."""
    file = site.root / "config.json"
    file.write_text(json.dumps(site.document))
    code = """
from shiftergw.app import explainer

explainer.EXPLANATION_SECONDS = 1
explainer.main()
"""
    command = [sys.executable, "-c", code, "--config", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(patient(60)) == -signal.SIGALRM


@pytest_twisted.ensureDeferred
async def test_another_user_than_the_gateway(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, too, would leave files behind that the gateway cannot write."""
    async with site.database():
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(ConfigurationError, match=r"StateDirectory: .* belongs to another user"):
        await site.explain()
