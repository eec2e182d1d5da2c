"""The findings of `shiftergw check` about remote systems and their hosts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.app.checkup.findings import document, findings
from tests.delivery.far import sftp_server
from tests.parts import free_port, need_root
from tests.sshd import Sshd


@pytest.mark.parametrize(
    ("transport", "transfer"), [("conch", "sftp"), ("openssh", "sftp"), ("conch", "scp")]
)
@pytest_twisted.ensureDeferred
async def test_a_remote_system(tmp_path: Path, transport: str, transfer: str) -> None:
    """The check logs in to a remote system and checks its image directory."""
    configuration = document(tmp_path, free_port(), free_port())
    with Sshd() as sshd:
        ssh = {
            "username": sshd.user,
            "imageDir": str(tmp_path / "images"),
            "key": str(sshd.key),
            "port": sshd.port,
            "knownHosts": str(sshd.known_hosts),
            "transport": transport,
            "transfer": transfer,
        }
        system = {"accesstype": "remote", "host": ["127.0.0.1"], "ssh": ssh}
        fit_machine = await findings(tmp_path, configuration | {"Platforms": {"s": system}})
        no_directory = {**system, "ssh": {**ssh, "imageDir": str(tmp_path / "nowhere")}}
        absent = await findings(tmp_path, configuration | {"Platforms": {"s": no_directory}})
        proc = {**system, "ssh": {**ssh, "imageDir": "/proc"}}  # no user creates files there
        closed = await findings(tmp_path, configuration | {"Platforms": {"s": proc}})
        no_key = {**system, "ssh": {**ssh, "key": str(tmp_path / "no key")}}
        keyless = await findings(tmp_path, configuration | {"Platforms": {"s": no_key}})
        half_key = {**system, "ssh": {**ssh, "key": f"{sshd.key}.pub"}}
        public = await findings(tmp_path, configuration | {"Platforms": {"s": half_key}})
        no_host = {**system, "host": ["no-such-host.invalid"]}
        nameless = await findings(tmp_path, configuration | {"Platforms": {"s": no_host}})
        sshd.known_hosts.write_text("")
        unknown = await findings(tmp_path, configuration | {"Platforms": {"s": system}})
        sshd.stop()
        down = await findings(tmp_path, configuration | {"Platforms": {"s": system}})
    assert "free" in fit_machine["imageDir of s"].text
    assert os.listdir(tmp_path / "images") == []  # noqa: PTH208
    assert closed["imageDir of s"].level == "failure"
    assert "must own `imageDir`" in closed["imageDir of s"].remedy
    assert keyless["imageDir of s"].level == "failure"
    for results in (closed, keyless, absent):
        assert "site's support" not in results["imageDir of s"].remedy, "the reader is that support"
    for results, what in ((absent, "it is not there"), (down, "cannot be reached")):
        assert results["imageDir of s"].level == "failure"
        assert what in results["imageDir of s"].text
    assert "is a public key" in public["imageDir of s"].text
    assert "without .pub" in public["imageDir of s"].remedy
    assert "has no address" in nameless["imageDir of s"].text
    assert "`host`" in nameless["imageDir of s"].remedy
    assert "later" not in nameless["imageDir of s"].remedy
    assert "host key is not known" in unknown["imageDir of s"].text
    assert "`shiftergw ssh-trust s` shows" in unknown["imageDir of s"].remedy


def system_of_hosts(sshd: Sshd, images: Path, transport: str, hosts: list[str]) -> dict[str, Any]:
    """Return a system whose hosts are addresses of one server, where it listens."""
    key = sshd.known_hosts.read_text().split(maxsplit=1)[1]
    known_hosts = sshd.root / "known"
    known_hosts.write_text(
        "".join(f"[{host}]:{sshd.port} {key}" for host in ("127.0.0.1", "127.0.0.2"))
    )
    ssh = {
        "username": sshd.user,
        "imageDir": str(images),
        "key": str(sshd.key),
        "port": sshd.port,
        "knownHosts": str(known_hosts),
        "transport": transport,
    }
    return {"Platforms": {"s": {"accesstype": "remote", "host": hosts, "ssh": ssh}}}


@pytest.mark.parametrize("transport", ["conch", "openssh"])
@pytest_twisted.ensureDeferred
async def test_a_remote_system_of_several_hosts(tmp_path: Path, transport: str) -> None:
    """Each host is checked; one that is down is a warning as long as another one works."""
    configuration = document(tmp_path, free_port(), free_port())
    (tmp_path / "images" / f"{'0' * 64}.squashfs").write_text("")
    # No server listens at 127.0.0.3; the host key of localhost is not known.
    hosts = ["127.0.0.3", "127.0.0.1", "127.0.0.2", "localhost"]
    with Sshd("ListenAddress 127.0.0.2") as sshd:
        system = system_of_hosts(sshd, tmp_path / "images", transport, hosts)
        results = await findings(tmp_path, configuration | system)
        sshd.stop()
        down = await findings(tmp_path, configuration | system)
    by_host = {host: results[f"imageDir of s on {host}"] for host in hosts}
    assert "cannot be reached" in by_host["127.0.0.3"].text
    assert "host key is not known" in by_host["localhost"].text
    assert [by_host[host].level for host in ("127.0.0.3", "localhost")] == ["warning"] * 2
    for host in ("127.0.0.1", "127.0.0.2"):
        assert by_host[host].text.startswith(f"{host}:{tmp_path}/images: ")
    assert "imageDir of s" not in results
    assert {down[f"imageDir of s on {host}"].level for host in hosts} == {"failure"}


@pytest_twisted.ensureDeferred
async def test_hosts_with_different_directories(tmp_path: Path) -> None:
    """Hosts that do not see the same files are a warning."""
    need_root()
    configuration = document(tmp_path, free_port(), free_port())
    images, second_directory, script = tmp_path / "images", tmp_path / "other", tmp_path / "script"
    second_directory.mkdir()
    (second_directory / f"{'0' * 64}.squashfs").write_text("")
    mount_command = f"mount --bind {second_directory} {images} && exec {sftp_server()}"
    script.write_text(
        f"""#!/bin/sh
        case "$SSH_CONNECTION" in *" 127.0.0.2 "*) exec unshare -m sh -c '{mount_command}' ;; esac
        exec {sftp_server()}
        """
    )
    script.chmod(0o755)
    with Sshd("ListenAddress 127.0.0.2", f"ForceCommand {script}") as sshd:
        system = system_of_hosts(sshd, images, "conch", ["127.0.0.1", "127.0.0.2"])
        results = (await findings(tmp_path, configuration | system))["imageDir of s"]
    assert results.level == "warning"
    assert results.text == "127.0.0.1 and 127.0.0.2 do not see the same files there"
