"""What `shiftergw ssh-trust` finds of a system's hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.app.trust import Host, Verdict, file_of, look
from shiftergw.config import System
from shiftergw.errors import ConfigurationError, DeliveryFailed
from tests.configurations import loaded
from tests.parts import free_port
from tests.sshd import Sshd, make_key, public


def _reactor() -> Any:
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    return reactor


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Give a server with two keys."""
    with Sshd(host_keys=["ed25519", "ecdsa:256"]) as running:
        yield running


def system(*hosts: str, **keys: Any) -> System:
    """Return a remote system."""
    account = {"username": "u", "imageDir": "/images", **keys}
    remote = {"accesstype": "remote", "host": list(hosts or ["127.0.0.1"]), "ssh": account}
    return loaded({"Platforms/other": remote}).config.systems["other"]


async def found(system: System) -> list[Host]:
    """Return what is found."""
    return await look(system, _reactor())


@pytest_twisted.ensureDeferred
async def test_hosts_in_their_order(sshd: Sshd, tmp_path: Path) -> None:
    """Each host is asked once, in the order of the list; one that fails does not keep the others.

    What is new can be added as it is.
    """
    hosts = "127.0.0.1", "no-such-host.invalid", "localhost", "127.0.0.1"
    (tmp_path / "known").write_text(f"[localhost]:{sshd.port} {public(sshd.host_key('ed25519'))}\n")
    one, two, three = await found(
        system(*hosts, port=sshd.port, knownHosts=str(tmp_path / "known"))
    )
    assert [key.verdict for key in one.keys] == [Verdict.NEW, Verdict.NEW]
    assert one.new_keys == one.keys
    assert one.keys[0].line == f"{one.name} {public(sshd.host_key('ed25519'))}"
    assert (two.keys, two.error is None) == ((), False)
    assert [key.verdict for key in three.keys] == [Verdict.KNOWN, Verdict.NEW]
    assert [key.kind for key in three.new_keys] == ["ecdsa-sha2-nistp256"]


@pytest_twisted.ensureDeferred
async def test_a_host_that_has_changed(sshd: Sshd, tmp_path: Path) -> None:
    """Of a host that is known by another key nothing may be added; the old line is named."""
    other = public(make_key(tmp_path / "other"))
    file = tmp_path / "known"
    file.write_text(f"# one\n[127.0.0.1]:{sshd.port} {other}\n")
    (host,) = await found(system(port=sshd.port, knownHosts=str(file)))
    assert host.has_changed
    assert host.new_keys == ()
    (held,) = host.keys[0].conflicts
    assert held.endswith(f"({file}, line 2)")


@pytest.mark.parametrize("transport", ["conch", "openssh"])
@pytest_twisted.ensureDeferred
async def test_port_and_file_of_options(sshd: Sshd, tmp_path: Path, transport: str) -> None:
    """Port and known hosts may come from the options, whatever else they say."""
    words = [f"-p{sshd.port}", "-o", f"UserKnownHostsFile={sshd.known_hosts}", "-J", "jump"]
    remote = system(sshCmdOptions=words, transport=transport)
    (host,) = await found(remote)
    assert {key.verdict for key in host.keys} == {Verdict.KNOWN}
    assert file_of(remote) == sshd.known_hosts


@pytest_twisted.ensureDeferred
async def test_files_of_the_user(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a list of its own a system has that of the user, which may be absent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    remote = system(port=sshd.port)
    (host,) = await found(remote)
    assert len(host.new_keys) == 2
    assert file_of(remote) == tmp_path / ".ssh" / "known_hosts"
    file_of(remote).parent.mkdir()
    file_of(remote).write_text(sshd.known_hosts.read_text())
    (host,) = await found(remote)
    assert {key.verdict for key in host.keys} == {Verdict.KNOWN}


@pytest_twisted.ensureDeferred
async def test_what_is_wrong_from_the_start(tmp_path: Path) -> None:
    """A host that is none, and known hosts that cannot be read, are told before any connection."""
    with pytest.raises(ConfigurationError, match="not a name or address"):
        await found(system("one", "a b"))
    with pytest.raises(DeliveryFailed, match="cannot be read"):
        await found(system(port=free_port(), knownHosts=str(tmp_path)))
