"""`shiftergw check` examines the broker and the worker machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.app.checkup.finding import Finding
from shiftergw.app.checkup.machines import broker as findings
from shiftergw.work.celery import inspection
from tests.configurations import load_config
from tests.rabbitmq import RabbitMQ
from tests.work.machines import WorkerMachine
from tests.work.waiting import until

CHANGES = {"MongoDBURI": "mongodb://localhost/", "MongoDB": "images"}


async def look(**changes: Any) -> dict[str, Finding]:
    """Return the findings by name."""
    config = load_config(CHANGES | changes).config
    return {finding.name: finding for finding in await findings(config, reactor)}


@pytest_twisted.ensureDeferred
async def test_without_a_broker() -> None:
    """A gateway without a broker has no findings."""
    assert await look() == {}


@pytest_twisted.ensureDeferred
async def test_a_broker(broker: RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings about the login, systems without machines, and machines of another version."""
    with monkeypatch.context() as impatient:
        impatient.setattr(inspection, "LISTEN_SECONDS", 0.2)
        alone = await look(BrokerURL=broker.url)
    assert (alone["BrokerURL"].level, alone["workers of mycluster"].level) == ("ok", "warning")
    env = {"BROKER": broker.url, "TRACES": str(tmp_path)}
    machine = WorkerMachine("checked", "mycluster", 1, tmp_path / "log", env)
    try:
        await until(lambda: " ready." in (tmp_path / "log").read_text(), 40)
        monkeypatch.setattr("shiftergw.app.checkup.machines.__version__", "99")
        results = await look(BrokerURL=broker.url)
        assert list(results) == ["BrokerURL", "worker machine celery@checked"]
        assert results["BrokerURL"].text == "the broker answers; worker machines: 1"
        assert results["worker machine celery@checked"].level == "warning"
    finally:
        machine.kill()
    wrong = await look(BrokerURL=broker.url.replace(broker.password, "guessed-wrong"))
    assert wrong["BrokerURL"].level == "failure"
    assert "guessed-wrong" not in str(wrong)
    assert "BrokerURL" in wrong["BrokerURL"].remedy


@pytest_twisted.ensureDeferred
async def test_an_unreachable_broker() -> None:
    """The finding about an unreachable broker does not contain the password."""
    unreachable = await look(BrokerURL="amqp://user:unsaid@127.0.0.1:1//")
    assert "Nothing listens" in unreachable["BrokerURL"].text
    assert "unsaid" not in str(unreachable)
