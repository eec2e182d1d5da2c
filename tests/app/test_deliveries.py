"""Connections by old configurations, in which options of `ssh` stand for what now has keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.app.deliveries import ssh_connect, ssh_hosts
from shiftergw.delivery.hosts import HOST_SECONDS, Connect
from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.connection import SshConnection
from tests.configurations import load_config
from tests.delivery.conch_client import run
from tests.installed_reactor import reactor
from tests.patience import patient
from tests.sshd import Sshd


async def connect_with_options(sshd: Sshd, threads: Threads, *options: str) -> SshConnection:
    """Return a connection by an old configuration with these options of ssh."""
    words = [f"-p{sshd.port}", "-o", f"UserKnownHostsFile={sshd.known_hosts}", *options]
    account = {"username": sshd.user, "imageDir": "/images", "sshCmdOptions": words}
    system = {
        "accesstype": "remote",
        "host": ["127.0.0.1"],
        "ssh": {**account, "scpCmdOptions": ["-i", str(sshd.key)]},
    }
    config = load_config({"Platforms/other": system}).config
    config.check_supported()
    section = config.systems["other"].ssh_delivery
    assert section is not None
    connection = await ssh_connect(section, "127.0.0.1", reactor, threads)()
    assert isinstance(connection, SshConnection)
    return connection


@pytest_twisted.ensureDeferred
async def test_options_of_ssh(threads: Threads) -> None:
    """Port, key, known hosts and ciphers come from the options; the first cipher is used."""
    with Sshd() as sshd:
        connection = await connect_with_options(sshd, threads, "-c", "aes256-ctr,aes128-ctr")
        try:
            assert connection.ciphers.count("aes256-ctr") == 2
            assert (await run(connection, "true"))[0] == 0
        finally:
            await connection.close()


@pytest_twisted.ensureDeferred
async def test_ciphers_that_the_server_lacks(threads: Threads) -> None:
    """Only the ciphers that the options name are offered."""
    with Sshd("Ciphers aes128-ctr") as sshd:
        with pytest.raises(DeliveryFailed, match="no algorithm in common") as caught:
            await connect_with_options(sshd, threads, "-c", "aes256-ctr")
        assert "the server offers aes128-ctr" in caught.value.detail


@pytest_twisted.ensureDeferred
async def test_host_keys_are_checked_in_any_case(threads: Threads) -> None:
    """Options that would turn off the check of host keys have no effect."""
    with Sshd() as sshd:
        sshd.known_hosts.write_text("")
        with pytest.raises(DeliveryFailed, match="host key is not known"):
            await connect_with_options(sshd, threads, "-o", "StrictHostKeyChecking=no")


@pytest_twisted.ensureDeferred
async def test_the_limit_on_connecting(threads: Threads, tmp_path: Path) -> None:
    """Connecting fails if the server does not answer within ConnectTimeout."""
    with Sshd() as sshd, sshd.suspension():
        began = reactor.seconds()
        with pytest.raises(DeliveryFailed, match="does not answer"):
            await connect_with_options(sshd, threads, "-o", "ConnectTimeout=1")
        assert 0.9 < reactor.seconds() - began < patient(10)


@pytest_twisted.ensureDeferred
async def test_connect_timeout_extends_the_limit_of_a_host(threads: Threads) -> None:
    """The time limit of a host is longer by ConnectTimeout; then the next host is tried."""
    system = {
        "accesstype": "remote",
        "host": ["a", "b"],
        "ssh": {"username": "u", "imageDir": "/i", "sshCmdOptions": ["-o", "ConnectTimeout=7"]},
    }
    clock = Clock()
    section = load_config({"Platforms/other": system}).config.systems["other"].ssh_delivery
    assert section is not None
    hosts = ssh_hosts(section, ["a", "b"], cast("Any", clock), threads)
    tries: list[Connect] = []

    async def begin(connect: Connect) -> str:
        tries.append(connect)
        if len(tries) == 1:
            await Deferred()
        return "b works"

    running = Deferred.fromCoroutine(hosts.first(begin))
    clock.advance(HOST_SECONDS + 7 - 1)
    assert len(tries) == 1
    clock.advance(1)
    assert len(tries) == 2
    assert await running == ("b", "b works")
