"""`check --database` lists delivered images whose registry is no location any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.app.checkup import contents
from shiftergw.app.checkup.locations import GONE_LOCATIONS, LocatedRecords
from shiftergw.config import Config
from tests.configurations import SMALLEST, load_config
from tests.store.places import running
from tests.store.pulls import complete_pull, request


def origin(location: str, repository: str = "app") -> dict[str, str]:
    """Return the origin of an image."""
    return {
        "location": location,
        "repository": repository,
        "source_digest": "sha256:" + "b" * 64,
    }


def document_of(**members: Any) -> dict[str, Any]:
    """Return the document of a READY record."""
    return {
        "_id": "k",
        "system": "mycluster",
        "status": "READY",
        "itype": "docker",
        "id": "a" * 64,
        "tag": ["app:1"],
        "remotetype": "dockerv2",
        **members,
    }


@pytest.mark.parametrize(
    ("members", "is_gone"),
    [
        ({}, False),
        ({"tag": ["REGISTRY.example.com:443/app:1"]}, False),
        ({"tag": ["gone.example.org/app:1"]}, True),
        ({"tag": ["app:1", "gone.example.org/app:1"]}, True),
        ({"tag": []}, False),
        ({"tag": ["no reference"]}, False),
        ({"origin": origin("registry.example.com")}, False),
        ({"origin": origin("gone")}, True),
        ({"tag": [], "origin": origin("gone.example.org")}, True),
        ({"itype": "custom", "tag": ["gone.example.org/app:1"], "origin": origin("")}, False),
    ],
)
def test_delivered_images(members: Any, is_gone: bool) -> None:
    """A tag names the registry of the next pull; the origin that of the last one."""
    records = LocatedRecords(load_config().config)
    assert records.judge(document_of(**members)) == (GONE_LOCATIONS if is_gone else "")


def test_lists_of_any_registry() -> None:
    """The location `*` has every host that its lists do not exclude."""
    anywhere = {"Locations/*": {"remotetype": "dockerv2", "deny": ["bad.example.org"]}}
    records = LocatedRecords(load_config(anywhere).config)
    for host, words in (("good.example.org", ""), ("bad.example.org", GONE_LOCATIONS)):
        assert records.judge(document_of(tag=[f"{host}/app:1"], origin=origin(host))) == words
        assert records.judge(document_of(tag=["app:1"], origin=origin(host))) == words


@pytest_twisted.ensureDeferred
async def test_the_finding(tmp_path: Path) -> None:
    """The finding counts the images and names examples; without such images there is none."""
    platforms = {"alpha": {"accesstype": "local", "local": {"imageDir": str(tmp_path)}}}
    document = {**SMALLEST, "StateDirectory": str(tmp_path), "Platforms": platforms}
    async with running(tmp_path / "shiftergw.sqlite") as store:
        pull = request(tag="gone.example.org/app:1")
        await complete_pull(store, request(), "b" * 64)
        config = Config.from_document(document, base=tmp_path, environ={}).config
        findings = await contents(reactor, config)
        assert "locations" not in {finding.name for finding in findings}
        await complete_pull(store, pull)
    findings = await contents(reactor, config)
    (finding,) = [finding for finding in findings if finding.name == "locations"]
    assert finding.level == "warning"
    assert finding.text.startswith(f"1 {GONE_LOCATIONS} (alpha/docker:gone.example.org/app:1 ")
    assert "Locations" in finding.remedy
