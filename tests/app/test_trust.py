"""The host keys of a system's hosts, as `shiftergw ssh-trust` compares them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.app.trust import Host, Verdict, file_of, look
from shiftergw.config import System
from shiftergw.errors import ConfigurationError, DeliveryFailed
from tests.configurations import load_config
from tests.parts import free_port
from tests.sshd import Sshd, make_key, public


def _reactor() -> Any:
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    return reactor


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Yield a server with two keys."""
    with Sshd(host_keys=["ed25519", "ecdsa:256"]) as running:
        yield running


def system(*hosts: str, **keys: Any) -> System:
    """Return a remote system."""
    account = {"username": "u", "imageDir": "/images", **keys}
    remote = {"accesstype": "remote", "host": list(hosts or ["127.0.0.1"]), "ssh": account}
    return load_config({"Platforms/other": remote}).config.systems["other"]


async def look_up(system: System) -> list[Host]:
    """Return the hosts of a system with their keys."""
    return await look(system, _reactor())


@pytest_twisted.ensureDeferred
async def test_hosts_in_their_order(sshd: Sshd, tmp_path: Path) -> None:
    """Each host is contacted once, in the configured order, whether or not others fail.

    New keys can be added as they are.
    """
    hosts = "127.0.0.1", "no-such-host.invalid", "localhost", "127.0.0.1"
    (tmp_path / "known").write_text(f"[localhost]:{sshd.port} {public(sshd.host_key('ed25519'))}\n")
    first, second, third = await look_up(
        system(*hosts, port=sshd.port, knownHosts=str(tmp_path / "known"))
    )
    assert [key.verdict for key in first.keys] == [Verdict.NEW, Verdict.NEW]
    assert first.new_keys == first.keys
    assert first.keys[0].line == f"{first.name} {public(sshd.host_key('ed25519'))}"
    assert (second.keys, second.error is None) == ((), False)
    assert [key.verdict for key in third.keys] == [Verdict.KNOWN, Verdict.NEW]
    assert [key.kind for key in third.new_keys] == ["ecdsa-sha2-nistp256"]


@pytest_twisted.ensureDeferred
async def test_a_host_that_has_changed(sshd: Sshd, tmp_path: Path) -> None:
    """No key of a host may be added if another key is known; the known line is named."""
    other_key = public(make_key(tmp_path / "other"))
    file = tmp_path / "known"
    file.write_text(f"# one\n[127.0.0.1]:{sshd.port} {other_key}\n")
    (host,) = await look_up(system(port=sshd.port, knownHosts=str(file)))
    assert host.has_changed
    assert host.new_keys == ()
    (conflict,) = host.keys[0].conflicts
    assert conflict.endswith(f"({file}, line 2)")


@pytest.mark.parametrize("transport", ["conch", "openssh"])
@pytest_twisted.ensureDeferred
async def test_port_and_file_of_options(sshd: Sshd, tmp_path: Path, transport: str) -> None:
    """Port and known hosts may come from the options, whatever else they say."""
    words = [f"-p{sshd.port}", "-o", f"UserKnownHostsFile={sshd.known_hosts}", "-J", "jump"]
    remote = system(sshCmdOptions=words, transport=transport)
    (host,) = await look_up(remote)
    assert {key.verdict for key in host.keys} == {Verdict.KNOWN}
    assert file_of(remote) == sshd.known_hosts


@pytest_twisted.ensureDeferred
async def test_files_of_the_user(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a list of its own, a system has that of the user, which may be absent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    remote = system(port=sshd.port)
    (host,) = await look_up(remote)
    assert len(host.new_keys) == 2
    assert file_of(remote) == tmp_path / ".ssh" / "known_hosts"
    file_of(remote).parent.mkdir()
    file_of(remote).write_text(sshd.known_hosts.read_text())
    (host,) = await look_up(remote)
    assert {key.verdict for key in host.keys} == {Verdict.KNOWN}


@pytest_twisted.ensureDeferred
async def test_errors_before_any_connection(tmp_path: Path) -> None:
    """An invalid host name, and known hosts that cannot be read."""
    with pytest.raises(ConfigurationError, match="not a name or address"):
        await look_up(system("one", "a b"))
    with pytest.raises(DeliveryFailed, match="cannot be read"):
        await look_up(system(port=free_port(), knownHosts=str(tmp_path)))
