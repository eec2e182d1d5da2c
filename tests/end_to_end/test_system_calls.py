"""The system calls of a real pull are those that the units allow."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.config.test_units import CONF
from tests.end_to_end.faulty import FaultyRegistry
from tests.images import entry, make_image, tar_of
from tests.munged import MungeDaemon
from tests.parts import lacking, need
from tests.running_service import POLL_PAUSE, SYSTEM, Service, until
from tests.sshd import Sshd

UNITS = ("shiftergw", "shiftergw-worker")
CALL = re.compile(r"^\d+ +(\w+)\(", re.MULTILINE)
"""The name of a call in the output of `strace -f`."""


def expand_groups(names: set[str], tool: str) -> set[str]:
    """Return the calls of systemd's groups, such as `@chown`, and of the groups in them."""
    calls, groups = set[str](), {name for name in names if name.startswith("@")}
    if groups:
        argv = [tool, "syscall-filter", "--no-pager", *sorted(groups)]
        lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
        entries = {line.strip() for line in lines if line.startswith(" ")}
        inner = {entry for entry in entries if not entry.startswith("#")}
        calls = expand_groups(inner, tool)
    return calls | (names - groups)


def allowed_calls(unit: str) -> set[str]:
    """Return the calls that a unit allows: its lines are applied in order (systemd.exec(5))."""
    tool, text = need("systemd-analyze"), (CONF / f"{unit}.service").read_text()
    calls = expand_groups({"@default"}, tool)
    for inversion, names in re.findall(r"^SystemCallFilter=(~?)(.+)$", text, re.MULTILINE):
        group = expand_groups(set(names.split()), tool)
        calls = calls - group if inversion else calls | group
    return calls


@pytest.fixture
def traced_service(tmp_path: Path) -> Iterator[tuple[Service, MungeDaemon, Path]]:
    """Run a gateway that uses munge, ssh and mksquashfs, and a trace of calls not allowed.

    The trace has `execve` as well, so that a test sees which programs were traced.
    """
    trace, strace = tmp_path / "trace", need("strace")
    if subprocess.run([strace, "-f", "-o", trace, "true"], check=False).returncode:
        lacking("tracing is not allowed here")
    calls = set.intersection(*(allowed_calls(unit) for unit in UNITS)) - {"execve"}
    expression = "trace=!" + ",".join(f"?{name}" for name in sorted(calls))
    argv = [strace, "-f", "-D", "--seccomp-bpf", "-qqq", "-e", "signal=none", "-e", expression]
    image = make_image([tar_of([entry("etc"), entry("etc/motd", b"hello" * 1000)])])
    with FaultyRegistry() as registry, Sshd() as sshd, MungeDaemon() as munged:
        registry.add("lib/app", image)
        locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
        basics: dict[str, Any] = {"admins": ["root"], "mungeSocketPath": str(munged.socket)}
        login = {
            "username": sshd.user,
            "imageDir": str(tmp_path / "far"),
            "key": str(sshd.key),
            "port": sshd.port,
            "knownHosts": str(sshd.known_hosts),
            "transport": "openssh",
        }
        (tmp_path / "far").mkdir()
        local = {"accesstype": "local", "local": {"imageDir": str(tmp_path / "images")}, **basics}
        remote = {"accesstype": "remote", "host": ["127.0.0.1"], "ssh": login, **basics}
        changes = {"Authentication": "munge", "Platforms": {SYSTEM: local, "far": remote}}
        through = [*argv, "-o", str(trace)]
        with Service(tmp_path, locations, changes, through=through) as service:
            yield service, munged, trace


def pull(service: Service, munged: MungeDaemon, system: str) -> dict[str, Any]:
    """Poll a pull with new credentials until it ends; return the last answer."""

    def final_answer() -> dict[str, Any] | None:
        path = f"/api/pull/{system}/docker/lib%2Fapp%3A1/"
        status, answer = service.get(path, munged.encode(), "POST")
        assert status == 200, answer
        return answer if answer["status"] in {"READY", "FAILURE"} else None

    return until(final_answer, 60, f"the end of a pull on {system}", POLL_PAUSE)


def test_a_pull_needs_no_forbidden_call(
    traced_service: tuple[Service, MungeDaemon, Path],
) -> None:
    """Gateway, worker, munge, mksquashfs and ssh make only calls that both units allow."""
    service, munged, trace = traced_service
    for system in (SYSTEM, "far"):
        answer = pull(service, munged, system)
        assert answer["status"] == "READY", (answer, service.log.read_text())
    service.stop()
    text = trace.read_text()
    for program in ("python", "mksquashfs", "ssh"):
        assert re.search(rf'execve\("[^"]*/{program}[^/"]*"', text), program
    assert set(CALL.findall(text)) == {"execve"}
