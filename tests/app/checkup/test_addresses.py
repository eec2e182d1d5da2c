"""The findings of `shiftergw check` about the addresses at which the gateway listens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.web.server import Site

from shiftergw.config import Config
from shiftergw.errors import ConfigurationError
from shiftergw.plumbing.listening import Listener
from tests.app.checkup.findings import Registry, document, findings
from tests.installed_reactor import reactor
from tests.parts import free_port
from tests.web.fakes import FakeGateway, listening, site_of


@pytest_twisted.ensureDeferred
async def test_a_port_in_use(tmp_path: Path) -> None:
    """A gateway that answers there is fine; any other program is a failure."""
    async with (
        listening(Site(Registry())) as registry,  # type: ignore[arg-type]  # any site
        listening(site_of(FakeGateway(), reactor)) as gateway_port,
    ):
        results = await findings(tmp_path, document(tmp_path, registry, gateway_port))
        assert (
            results[f"Listen tcp:{gateway_port}:interface=127.0.0.1"].text
            == "a gateway answers there"
        )
        results = await findings(tmp_path, document(tmp_path, registry, registry))
        assert results[f"Listen tcp:{registry}:interface=127.0.0.1"].level == "failure"


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("tcp:99999:interface=127.0.0.1", "port must be 0-65535"),
        ("unix:/nosuch/socket", "/nosuch/socket.lock: No such file or directory"),
        ("ssl:0:interface=127.0.0.1:privateKey=/nosuch:certKey=/nosuch", "/nosuch: No such file"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_unusable_addresses(tmp_path: Path, listen: str, words: str) -> None:
    """Unusable addresses are failures with cause and remedy, in the check and at the start."""
    configuration = document(tmp_path, free_port(), 1) | {"Listen": listen}
    finding = (await findings(tmp_path, configuration))[f"Listen {listen}"]
    assert finding.level == "failure"
    assert words in finding.text
    assert finding.remedy
    config = Config.from_document(configuration, base=tmp_path, environ={}).config
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        await Listener(config.listen[0], site_of(FakeGateway()), reactor).startService()


@pytest_twisted.ensureDeferred
async def test_one_address_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway listens at all addresses at the same time, and so does the check."""
    monkeypatch.setattr("shiftergw.app.checkup.NETWORK_LIMIT", 0.5)
    port = free_port()
    texts = [f"tcp:{port}:interface=127.0.0.1", f"tcp:{port}:interface=localhost"]
    configuration = document(tmp_path, free_port(), 1) | {"Listen": texts}
    results = await findings(tmp_path, configuration)
    levels = [str(results[f"Listen {text}"].level) for text in texts]
    assert levels == ["ok", "failure"]


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_in_use(tmp_path: Path) -> None:
    """A socket in use is only a warning, because a gateway may listen there."""
    name = f"Listen unix:{tmp_path}/socket"
    configuration = document(tmp_path, free_port(), 1) | {"Listen": name.partition(" ")[2]}
    assert (await findings(tmp_path, configuration))[name].text == "free"
    listening_port = cast("Any", reactor).listenUNIX(f"{tmp_path}/socket", site_of(FakeGateway()))
    try:
        assert (await findings(tmp_path, configuration))[name].level == "warning"
    finally:
        await listening_port.stopListening()
