"""TLS to a real broker: it has to prove its name, and whoever is refused is told why."""

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
from tests.configurations import loaded
from tests.rabbitmq import RabbitMQ
from tests.work.contract import key_of
from tests.work.machines import WorkerMachine
from tests.work.waiting import until

SYSTEM = "mycluster"
MONGODB = {"MongoDBURI": "mongodb://localhost/", "MongoDB": "images"}
START_SECONDS = 40


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that the machine does not know."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pem(authority: Authority) -> Path:
    """Return the broker's key and certificate."""
    return authority.file("127.0.0.1")


@contextmanager
def running(authority: Authority, pem: Path, *, ask: bool = False) -> Iterator[RabbitMQ]:
    """Run a broker that is reached with TLS, and without."""
    broker = RabbitMQ()
    broker.settings = broker.with_tls(authority.pem, pem, ask=ask)
    with broker:
        yield broker


@pytest.fixture(scope="module")
def tls_broker(authority: Authority, pem: Path) -> Iterator[RabbitMQ]:
    """Return a broker that wants no certificate of its clients."""
    with running(authority, pem) as broker:
        yield broker


@pytest.fixture
def asking_broker(authority: Authority, pem: Path) -> Iterator[RabbitMQ]:
    """Return one that does."""
    with running(authority, pem, ask=True) as broker:
        yield broker


async def refused(url: str) -> str:
    """Return what `shiftergw check` says of a broker that cannot be used; no password is in it."""
    config = loaded({**MONGODB, "BrokerURL": url}).config
    found = (await findings(config, reactor))[0]
    assert found.level == "failure", found
    assert RabbitMQ.password_of(url) not in str(found)
    return f"{found.text} {found.remedy}"


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_the_right_authority(
    tls_broker: RabbitMQ,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gateway, worker machine and check all work, if the URL names it or the environment."""
    env = {
        "BROKER": tls_broker.tls_url,
        "TRACES": str(tmp_path),
        "SSL_CERT_FILE": str(authority.pem),
    }
    machine = WorkerMachine(f"tls-{uuid4()}", SYSTEM, 1, tmp_path / "log", env)
    url = f"{tls_broker.tls_url}?cacertfile={authority.pem}"
    queue = CeleryQueue(reactor, url)
    queue.startService()
    try:
        await until(lambda: queue.slots(SYSTEM) == 1, START_SECONDS)
        await queue.offer(key_of("short-1"), SYSTEM)
        await until((tmp_path / "short-1-done").exists)
        await until(lambda: queue.slots(SYSTEM) == 1)
        await queue.offer(key_of("sleep-2"), SYSTEM)
        await until((tmp_path / "sleep-2").exists)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.pem))
        config = loaded({**MONGODB, "BrokerURL": tls_broker.tls_url}).config
        assert [(one.name, one.level) for one in await findings(config, reactor)] == [
            ("BrokerURL", "ok")
        ]
        await queue.cancel(key_of("sleep-2"))
        assert tls_broker.password not in machine.log.read_text()
    finally:
        machine.kill()
        await queue.stopService()


@pytest_twisted.ensureDeferred
async def test_an_authority_that_is_not_known(tls_broker: RabbitMQ, tmp_path: Path) -> None:
    """It is said so, also if the other one bears the same name."""
    assert "authority that is not known" in await refused(tls_broker.tls_url)
    other = f"{tls_broker.tls_url}?cacertfile={Authority(tmp_path).pem}"
    text = await refused(other)
    assert "authority that is not known" in text
    assert "cacertfile" in text


@pytest_twisted.ensureDeferred
async def test_a_wrong_name(tls_broker: RabbitMQ, authority: Authority) -> None:
    """A certificate for another host is none."""
    url = tls_broker.tls_url.replace("127.0.0.1", "127.0.0.2")
    assert "for another name" in await refused(f"{url}?cacertfile={authority.pem}")


@pytest_twisted.ensureDeferred
async def test_a_port_of_the_other_kind(tls_broker: RabbitMQ) -> None:
    """TLS to the port without, and the other way round."""
    assert "speaks no TLS" in await refused(tls_broker.url.replace("amqp:", "amqps:"))
    assert "write amqps://" in await refused(tls_broker.tls_url.replace("amqps:", "amqp:"))


@pytest.mark.parametrize("option", ["cacertfile", "certfile"])
@pytest_twisted.ensureDeferred
async def test_files_that_are_none(tls_broker: RabbitMQ, tmp_path: Path, option: str) -> None:
    """A file that is absent, or holds no certificate, is blamed, and not the broker."""
    file = tmp_path / "x.pem"
    url = f"{tls_broker.tls_url}?{option}={file}"
    assert "is not there" in await refused(url)
    file.write_text("nothing")
    assert "holds no certificate" in await refused(url)


@pytest_twisted.ensureDeferred
async def test_a_worker_machine_is_told_as_well(tls_broker: RabbitMQ, tmp_path: Path) -> None:
    """It says why it does not come, without the password, and goes on trying until it is ended."""
    env = {"BROKER": tls_broker.tls_url, "TRACES": str(tmp_path)}
    machine = WorkerMachine("stranger", SYSTEM, 1, tmp_path / "log", env)
    try:
        await until(
            lambda: "authority that is not known here. Name its file" in machine.log.read_text(),
            START_SECONDS,
        )
        assert tls_broker.password not in machine.log.read_text()
        assert not machine.has_ended
        machine.stop()
        assert "Traceback" not in machine.log.read_text()
    finally:
        machine.kill()


@contextmanager
def showing(broker: RabbitMQ, pem: Path, other: Path) -> Iterator[None]:
    """Have the broker show another certificate for a while."""
    good = pem.read_bytes()
    try:
        pem.write_bytes(other.read_bytes())
        broker.ctl("eval", "ssl:clear_pem_cache().")
        yield
    finally:
        pem.write_bytes(good)
        broker.ctl("eval", "ssl:clear_pem_cache().")


@pytest_twisted.ensureDeferred
async def test_an_expired_certificate(
    tls_broker: RabbitMQ, authority: Authority, pem: Path
) -> None:
    """It is refused, also where something is sent."""
    url = f"{tls_broker.tls_url}?cacertfile={authority.pem}"
    with showing(tls_broker, pem, authority.file("127.0.0.1", days=-1)):
        assert "has expired" in await refused(url)
        with pytest.raises(Unavailable) as caught:
            MessageSender(make_app(url)).cancel(key_of("x"))
        assert "has expired" in caught.value.detail


@pytest_twisted.ensureDeferred
async def test_a_broker_that_asks_for_certificates(
    asking_broker: RabbitMQ, authority: Authority, tmp_path: Path
) -> None:
    """The URL names ours; without it, or with a stranger's, we are told what is lacking."""
    url = f"{asking_broker.tls_url}?cacertfile={authority.pem}"
    assert "certfile" in await refused(url)
    ours, strange = authority.file("us"), Authority(tmp_path).file("us")
    assert "certfile" in await refused(f"{url}&certfile={strange}")
    key = tmp_path / "key.pem"
    text = ours.read_text()
    end = text.index("-----BEGIN CERTIFICATE-----")
    key.write_text(text[:end])
    ours.write_text(text[end:])
    MessageSender(make_app(f"{url}&certfile={ours}&keyfile={key}")).cancel(key_of("x"))
