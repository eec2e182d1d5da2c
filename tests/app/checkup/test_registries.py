"""The findings of `shiftergw check` about registries, their mirrors and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.app.checkup.finding import Finding, Level
from shiftergw.app.checkup.registries import registries
from tests.certificates import Authority
from tests.configurations import load_config
from tests.impostors import listening as tls_listening
from tests.installed_reactor import reactor
from tests.registries import FakeRegistry

REACTOR = reactor
PLACE = "Locations/registry.example.com"


async def check(changes: dict[str, Any]) -> dict[str, list[Finding]]:
    """Return the findings by name, with a registry on the loopback that is fine."""
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(200, b"{}"))
    await registry.start()
    url = {f"{PLACE}/url": f"http://{registry.host}"}
    result: dict[str, list[Finding]] = {}
    try:
        config = load_config(
            url | {key: _fill(value, registry.host) for key, value in changes.items()}
        ).config
        for finding in await registries(config, {}, REACTOR):
            name = finding.name.replace(registry.host, "HOST")
            result.setdefault(name, []).append(finding)
    finally:
        await registry.stop()
    return result


def _fill(value: Any, host: str) -> Any:
    """Replace HOST in the URLs of mirrors."""
    if isinstance(value, list):
        return [_fill(item, host) for item in value]
    if isinstance(value, dict):
        return {key: _fill(item, host) for key, item in value.items()}
    return value.replace("HOST", host) if isinstance(value, str) else value


@pytest_twisted.ensureDeferred
async def test_mirrors(tmp_path: Path) -> None:
    """Each mirror is asked, and its login file is read; one that is down is a warning."""
    login = tmp_path / "login"
    login.write_text("a:b")
    login.chmod(0o600)
    mirrors = [{"url": "http://HOST/path", "login": str(login)}, "http://127.0.0.1:1"]
    results = await check({f"{PLACE}/mirrors": mirrors})
    name = "mirror HOST of registry.example.com"
    assert [finding.level for finding in results[name]] == [Level.OK]
    (warning,) = results["mirror 127.0.0.1:1 of registry.example.com"]
    assert (warning.level, "connection refused" in warning.text) == (Level.WARNING, True)
    login.chmod(0o604)
    first, second = (await check({f"{PLACE}/mirrors": mirrors}))[name]
    assert (first.level, second.level) == (Level.FAILURE, Level.OK)
    assert "open to every user" in first.text


@pytest.mark.parametrize(
    ("days", "level", "words"),
    [
        (100, Level.OK, "is valid"),
        (3, Level.WARNING, "expires on "),
        (-2, Level.FAILURE, "expired on "),
    ],
)
@pytest_twisted.ensureDeferred
async def test_dates_of_a_client_certificate(
    tmp_path: Path, days: int, level: Level, words: str
) -> None:
    """A certificate that has expired, or soon will, is reported."""
    file = Authority(tmp_path).file("gateway", days=days)
    file.chmod(0o600)
    first, answer = (await check({f"{PLACE}/clientCertificate": str(file)}))[
        "registry registry.example.com"
    ]
    assert (first.level, answer.level) == (level, Level.OK)
    assert f"{file} {words}" in first.text


@pytest_twisted.ensureDeferred
async def test_files_of_a_client_certificate(tmp_path: Path) -> None:
    """A file that is absent, and a key of another certificate, are failures with a remedy."""
    authority = Authority(tmp_path)
    own, second = authority.file("gateway", days=100), authority.file("other")
    for file in (own, second):
        file.chmod(0o600)
    name = "registry registry.example.com"
    (absent,) = (await check({f"{PLACE}/clientCertificate": "/absent.pem"}))[name]
    assert (absent.level, "/absent.pem" in absent.text) == (Level.FAILURE, True)
    changes = {f"{PLACE}/clientCertificate": str(own), f"{PLACE}/clientKey": str(second)}
    _, mismatch = (await check(changes))[name]
    assert mismatch.level is Level.FAILURE
    assert "is the key of another certificate" in mismatch.text
    assert "certificate was requested" in mismatch.remedy


@pytest_twisted.ensureDeferred
async def test_registries_without_a_location() -> None:
    """The lists of the location `*` are shown; nothing is asked for it."""
    section = {"remotetype": "dockerv2", "allow": ["*.io"], "deny": ["bad.io"]}
    (finding,) = (await check({"Locations/*": section}))["registries without a location"]
    assert (finding.level, finding.text) == (Level.OK, "*.io, except bad.io")


@pytest_twisted.ensureDeferred
async def test_directories(tmp_path: Path) -> None:
    """A directory with OCI layouts must be there; it is not asked as a registry."""
    layouts = {"remotetype": "oci-layout"}
    results = await check(
        {
            "Locations/site": layouts | {"url": tmp_path.as_uri()},
            "Locations/absent": layouts | {"url": f"{tmp_path.as_uri()}/absent"},
        }
    )
    assert [(f.level, f.text) for f in results["location site"]] == [(Level.OK, str(tmp_path))]
    (finding,) = results["location absent"]
    assert finding.level == Level.WARNING
    assert finding.text == f"{tmp_path}/absent is not a directory"
    assert "registry site" not in results
    url = {"Locations/absent": layouts | {"url": f"{tmp_path.as_uri()}/absent"}}
    (finding,) = (await check(url | {"DefaultImageLocation": "absent"}))["location absent"]
    assert finding.level == Level.FAILURE


@pytest_twisted.ensureDeferred
async def test_a_dead_registry_beside_the_default_one(tmp_path: Path) -> None:
    """It is a warning, as images of other registries can be pulled; a wrong key is a failure."""
    section = {"remotetype": "dockerv2", "url": "http://127.0.0.1:1"}
    extra = {"Locations/extra": section}
    (finding,) = (await check(extra))["registry extra"]
    assert (finding.level, "connection refused" in finding.text) == (Level.WARNING, True)
    assert finding.remedy
    (finding,) = (await check(extra | {"DefaultImageLocation": "extra"}))["registry extra"]
    assert finding.level is Level.FAILURE
    wrong = {"Locations/extra": section | {"clientCertificate": str(tmp_path / "absent.pem")}}
    (finding,) = (await check(wrong))["registry extra"]
    assert finding.level is Level.FAILURE
    async with tls_listening(Authority(tmp_path).server_file()) as server:
        url = {"url": f"https://localhost:{server.port}"}
        (finding,) = (await check({"Locations/extra": section | url}))["registry extra"]
    assert (finding.level, "certificate" in finding.text) == (Level.WARNING, True)


@pytest_twisted.ensureDeferred
async def test_a_registry_that_has_moved() -> None:
    """A url that redirects to another address is a warning: logins are not sent there."""
    registry = await FakeRegistry(misbehave=lambda ask: ask.answer(401)).start()
    target = f"http://{registry.host}"
    old_registry = FakeRegistry(misbehave=lambda ask: ask.answer(301, Location=f"{target}/v2/"))
    await old_registry.start()
    url = f"http://{old_registry.host}"
    try:
        changes = {f"{PLACE}/url": url, f"{PLACE}/trustedHosts": ["127.0.0.1"]}
        (finding,) = await registries(load_config(changes).config, {}, REACTOR)
    finally:
        await old_registry.stop()
        await registry.stop()
    assert finding.level is Level.WARNING
    assert finding.text == f"{url} redirects to {target}, where no login is sent"
    assert target in finding.remedy
