"""TLS to a real broker, which must prove its name; the reason of each refusal is reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.app.checkup.machines import broker as findings
from shiftergw.errors import Unavailable
from shiftergw.work.celery.app import make_app
from shiftergw.work.celery.broker_connections import MessageSender
from shiftergw.work.celery.queue import CeleryQueue
from tests.certificates import Authority
from tests.configurations import load_config
from tests.rabbitmq import RabbitMQ
from tests.work.keys import key_of
from tests.work.machines import WorkerMachine
from tests.work.waiting import until

MONGODB = {"MongoDBURI": "mongodb://localhost/", "MongoDB": "images"}
PLATFORM = {"accesstype": "local", "local": {"imageDir": "/images"}}
START_SECONDS = 40


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return a certificate authority that the machine does not know."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pem(authority: Authority) -> Path:
    """Return the broker's key and certificate."""
    return authority.file("127.0.0.1")


@pytest.fixture(scope="module")
def tls_url(broker: RabbitMQ, authority: Authority, pem: Path) -> str:
    """Return the URL of a port at which the broker asks its clients for no certificate."""
    return broker.listen_with_tls(authority.pem, pem)


async def check_failure(url: str) -> str:
    """Return the failure that `shiftergw check` reports; fail if it shows the password."""
    config = load_config({**MONGODB, "BrokerURL": url}).config
    finding = (await findings(config, reactor))[0]
    assert finding.level == "failure", finding
    assert RabbitMQ.password_of(url) not in str(finding)
    return f"{finding.text} {finding.remedy}"


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_the_right_authority(
    broker: RabbitMQ,
    tls_url: str,
    system: str,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gateway, machine and `check` accept the broker if the URL or `$SSL_CERT_FILE` names it."""
    env = {
        "BROKER": tls_url,
        "TRACES": str(tmp_path),
        "SSL_CERT_FILE": str(authority.pem),
    }
    machine = WorkerMachine(f"tls-{uuid4()}", system, 1, tmp_path / "log", env)
    url = f"{tls_url}?cacertfile={authority.pem}"
    queue = CeleryQueue(reactor, url)
    queue.startService()
    try:
        await until(lambda: queue.slots(system) == 1, START_SECONDS)
        await queue.offer(key_of("short-1"), system)
        await until((tmp_path / "short-1-done").exists)
        await until(lambda: queue.slots(system) == 1)
        await queue.offer(key_of("sleep-2"), system)
        await until((tmp_path / "sleep-2").exists)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.pem))
        changes = {**MONGODB, "BrokerURL": tls_url, f"Platforms/{system}": PLATFORM}
        levels = {
            finding.name: finding.level
            for finding in await findings(load_config(changes).config, reactor)
        }
        assert levels["BrokerURL"] == "ok"
        assert f"workers of {system}" not in levels
        await queue.cancel(key_of("sleep-2"))
        assert broker.password not in machine.log.read_text()
    finally:
        machine.kill()
        await queue.stopService()


@pytest_twisted.ensureDeferred
async def test_an_unknown_authority(tls_url: str, tmp_path: Path) -> None:
    """The failure names the cause, also if an authority with the same name is known."""
    assert "authority that is not known" in await check_failure(tls_url)
    url = f"{tls_url}?cacertfile={Authority(tmp_path).pem}"
    text = await check_failure(url)
    assert "authority that is not known" in text
    assert "cacertfile" in text


@pytest_twisted.ensureDeferred
async def test_a_wrong_name(tls_url: str, authority: Authority) -> None:
    """A certificate for another host is refused."""
    url = tls_url.replace("127.0.0.1", "127.0.0.2")
    assert "for another name" in await check_failure(f"{url}?cacertfile={authority.pem}")


@pytest_twisted.ensureDeferred
async def test_a_port_with_the_wrong_protocol(broker: RabbitMQ, tls_url: str) -> None:
    """The failure of `amqps:` to a plain port names it, and so does that of `amqp:` to TLS."""
    assert "speaks no TLS" in await check_failure(broker.url.replace("amqp:", "amqps:"))
    assert "write amqps://" in await check_failure(tls_url.replace("amqps:", "amqp:"))


@pytest.mark.parametrize("option", ["cacertfile", "certfile"])
@pytest_twisted.ensureDeferred
async def test_invalid_files_in_the_url(tls_url: str, tmp_path: Path, option: str) -> None:
    """The failure names a file that is missing, or has no certificate, not the broker."""
    file = tmp_path / "x.pem"
    url = f"{tls_url}?{option}={file}"
    assert "is not there" in await check_failure(url)
    file.write_text("nothing")
    assert "holds no certificate" in await check_failure(url)


@pytest_twisted.ensureDeferred
async def test_a_worker_machine_logs_the_refusal(
    broker: RabbitMQ, tls_url: str, system: str, tmp_path: Path
) -> None:
    """The machine logs the reason without the password, and tries again until its stop."""
    env = {"BROKER": tls_url, "TRACES": str(tmp_path)}
    machine = WorkerMachine("stranger", system, 1, tmp_path / "log", env)
    try:
        await until(
            lambda: "authority that is not known here. Name its file" in machine.log.read_text(),
            START_SECONDS,
        )
        assert broker.password not in machine.log.read_text()
        assert not machine.has_ended
        machine.stop()
        assert "Traceback" not in machine.log.read_text()
    finally:
        machine.kill()


@contextmanager
def replaced_certificate(broker: RabbitMQ, pem: Path, replacement: Path) -> Iterator[None]:
    """Let the broker use another certificate for a while."""
    original = pem.read_bytes()
    try:
        pem.write_bytes(replacement.read_bytes())
        broker.evaluate("ssl:clear_pem_cache()")
        yield
    finally:
        pem.write_bytes(original)
        broker.evaluate("ssl:clear_pem_cache()")


@pytest_twisted.ensureDeferred
@pytest.mark.slow
async def test_an_expired_certificate(
    broker: RabbitMQ, tls_url: str, authority: Authority, pem: Path
) -> None:
    """Both `check` and the sender of messages refuse it."""
    url = f"{tls_url}?cacertfile={authority.pem}"
    with replaced_certificate(broker, pem, authority.file("127.0.0.1", days=-1)):
        assert "has expired" in await check_failure(url)
        with pytest.raises(Unavailable) as caught:
            MessageSender(make_app(url)).cancel(key_of("x"))
        assert "has expired" in caught.value.detail


@pytest_twisted.ensureDeferred
async def test_a_broker_that_asks_for_certificates(
    broker: RabbitMQ, authority: Authority, pem: Path, tmp_path: Path
) -> None:
    """The URL names ours; without it, or with that of another authority, the failure says so."""
    asking_url = broker.listen_with_tls(authority.pem, pem, ask=True)
    url = f"{asking_url}?cacertfile={authority.pem}"
    assert "certfile" in await check_failure(url)
    own, foreign = authority.file("us"), Authority(tmp_path).file("us")
    assert "certfile" in await check_failure(f"{url}&certfile={foreign}")
    key = tmp_path / "key.pem"
    text = own.read_text()
    end = text.index("-----BEGIN CERTIFICATE-----")
    key.write_text(text[:end])
    own.write_text(text[end:])
    MessageSender(make_app(f"{url}&certfile={own}&keyfile={key}")).cancel(key_of("x"))
