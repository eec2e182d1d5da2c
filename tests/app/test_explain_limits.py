"""Parts that hang do not keep an explanation: they are named, and the rest is looked up."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from shiftergw.app import explain_limits as limits
from shiftergw.app.explain_limits import LookUpPlace
from shiftergw.errors import TimedOut
from shiftergw.model.explanations import ExplainRequest
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import Session
from shiftergw.plumbing.timing import pause
from shiftergw.store.sqlite.store import SqliteStore
from tests.app.explain_site import STRICT, SYSTEM, Site
from tests.patience import patient
from tests.registries import USER


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
    """The explanation asks a database that hangs only once."""
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
    """The process prints the explanation of the rest, and ends."""
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
    """The process ends by itself, whatever it does."""
    file = site.root / "config.json"
    file.write_text(json.dumps(site.document))
    code = """
import signal
from shiftergw.app import explainer

signal.alarm = lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds / 1000)
explainer.main()
"""
    command = [sys.executable, "-c", code, "--config", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(patient(60)) == -signal.SIGALRM
