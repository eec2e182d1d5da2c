"""Systems with several hosts, some of which are down, broken, or restarted: real servers."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_twisted

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import Connection
from shiftergw.plumbing.timing import pause
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore, names
from tests.delivery.ssh_systems import CONNECT_SECONDS, System
from tests.installed_reactor import reactor
from tests.parts import need_root
from tests.patience import patient
from tests.sshd import Sshd

BUSY_SECONDS = 20.0
"""Seconds that a busy machine may take for an operation that is otherwise immediate."""


@pytest_twisted.ensureDeferred
async def test_first_host_is_down(
    system: System, pair: tuple[Sshd, Sshd], root: Path, log: list[str]
) -> None:
    """Another host is used at once, and the first host is not tried again for every file."""
    first, second = pair
    first.stop()
    connector, connect_count = system.connector(first), 0

    async def count_and_connect() -> Connection:
        nonlocal connect_count
        connect_count += 1
        return await connector()

    directory = system.directory([count_and_connect, system.connector(second)], root)
    await directory.write(b"1", META)
    assert (root / META).read_bytes() == b"1"
    warning, change = log
    assert warning.startswith("warn: a cannot be used: The system cannot be reached.")
    assert change == "info: b is the host that is used"
    second.end_connections()
    await directory.write(b"2", META)
    assert (root / META).read_bytes() == b"2"
    assert (connect_count, len(log)) == (1, 2)


@pytest_twisted.ensureDeferred
async def test_first_host_is_a_black_hole(
    system: System, pair: tuple[Sshd, Sshd], root: Path, black_hole: int
) -> None:
    """A host that accepts connections and stays silent costs no more than the connect limit."""
    first, second = pair
    known_hosts = first.known_hosts
    hole = system.connector(first, port=black_hole, known_hosts=known_hosts)
    directory = system.directory([hole, system.connector(second)], root)
    began = time.monotonic()
    await directory.write(b"1", META)
    assert time.monotonic() - began < patient(CONNECT_SECONDS + BUSY_SECONDS)
    assert (root / META).read_bytes() == b"1"


@pytest_twisted.ensureDeferred
async def test_first_host_shows_another_key(
    system: System, pair: tuple[Sshd, Sshd], root: Path, log: list[str]
) -> None:
    """A host with a wrong host key gets no data, is logged, and does not stop the delivery."""
    first, second = pair
    key = second.host_key("ed25519").with_suffix(".pub").read_text()
    first.known_hosts.write_text(f"[127.0.0.1]:{first.port} {key}")
    directory = system.directory([system.connector(first), system.connector(second)], root)
    await directory.write(b"1", META)
    assert names(root) == [META]
    assert log[0].startswith("warn: a cannot be used: The system")
    assert "host key" in log[0]
    assert "Accepted publickey" not in first.log.read_text()


@pytest_twisted.ensureDeferred
async def test_first_host_has_no_sftp(system: System, root: Path) -> None:
    """A host that accepts the login but has no SFTP is skipped."""
    with Sshd("ForceCommand /bin/false") as first, Sshd() as second:
        directory = system.directory([system.connector(first), system.connector(second)], root)
        await directory.write(b"1", META)
        assert "Accepted publickey" in first.log.read_text()
    assert names(root) == [META]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest_twisted.ensureDeferred
async def test_first_host_lost_the_directory(
    system: System, root: Path, tmp_path: Path, log: list[str], when: str
) -> None:
    """A host that has not mounted the file system, or lost it, is skipped."""
    need_root()
    with TemporaryDirectory(dir="/run") as jail, Sshd() as second:
        os.chmod(jail, 0o755)  # noqa: PTH101 - a text
        first_root = Path(jail) / root.relative_to("/")
        settings = ("ForceCommand internal-sftp", f"ChrootDirectory {jail}")
        with Sshd(*settings) as first:
            directory = system.directory([system.connector(first), system.connector(second)], root)
            if when == "meanwhile":
                first_root.mkdir(parents=True)
                await directory.write(b"0", META)
                assert names(first_root) == [META]
                shutil.rmtree(first_root)
            await directory.write(b"1", META)
            source = tmp_path / "converted"
            source.write_bytes(CONTENT)
            await directory.install(source, IMAGE, SHA256, ignore)
    assert names(root) == sorted([IMAGE, META])
    assert ("it is not there" in log[0]) is (when == "before")
    assert log[-1] == "info: b is the host that is used"


@pytest_twisted.ensureDeferred
async def test_error_if_no_host_works(system: System, pair: tuple[Sshd, Sshd], root: Path) -> None:
    """Users see what has to be fixed, without host names; the detail has each host's reason."""
    first, second = pair
    first.stop()
    second.known_hosts.write_text("")
    directory = system.directory([system.connector(first), system.connector(second)], root)
    with pytest.raises(DeliveryFailed, match="host key is not known") as caught:
        await directory.exists(META)
    reasons = caught.value.detail.split("; b: ")
    assert reasons[0].startswith("a: The system cannot be reached.")
    assert "host key is not known" in reasons[1]
    assert "127.0.0.1" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_hosts_that_come_and_go(
    system: System, pair: tuple[Sshd, Sshd], root: Path, log: list[str]
) -> None:
    """A restarted host is used again when the other host stops; one connection is open."""
    directory = system.directory([system.connector(host) for host in pair], root)
    for turn in range(4):
        down = pair[(turn + 1) % 2]
        down.stop()
        await directory.write(b"%d" % turn, META)
        assert (root / META).read_bytes() == b"%d" % turn
        assert names(root) == [META]
        down.start()
        for _ in range(100):
            if system.alive() == 1:
                break
            await pause(0.05, reactor)
        assert system.alive() == 1
    changes = [line for line in log if line.startswith("info")]
    assert changes == [f"info: {host} is the host that is used" for host in "abab"]
