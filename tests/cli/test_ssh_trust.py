"""ssh-trust as a process, with a terminal and without one, against real servers."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ENVIRONMENT, shiftergw, start
from tests.cli.homes import LIMIT
from tests.cli.terminals import Terminal
from tests.configurations import change_document
from tests.parts import free_port, need
from tests.patience import patient
from tests.sshd import Sshd, make_key, public

KINDS = "ed25519", "ecdsa:256", "rsa:2048"


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Run a server with a key of each type."""
    with Sshd(host_keys=KINDS) as running:
        yield running


class Site:
    """A gateway's machine without known hosts, with a remote system `far`."""

    def __init__(self, root: Path, port: int) -> None:
        """Write the configuration."""
        self.known_hosts = root / "known"
        self.file = root / "imagemanager.json"
        self.port = port
        self.name = f"[127.0.0.1]:{port}"
        self.configure()

    def configure(self, *hosts: str, **keys: Any) -> None:
        """Change the hosts of the system, and its `ssh` section."""
        ssh = {"username": "u", "imageDir": "/i", "port": self.port, "knownHosts": "known", **keys}
        system = {"accesstype": "remote", "host": list(hosts or ["127.0.0.1"]), "ssh": ssh}
        self.file.write_text(json.dumps(change_document({"Platforms/far": system})))

    def run(self, *options: str, system: str = "far") -> tuple[int, str, str]:
        """Run the command without a terminal; return exit code, output and standard error."""
        done = shiftergw(
            *("ssh-trust", system, "--config", str(self.file), *options),
            stdin="yes\n",  # which must not count
            start_new_session=True,
        )
        return done.returncode, done.stdout, done.stderr

    def terminal(self) -> Terminal:
        """Run the command on a terminal."""
        return Terminal(ENVIRONMENT, "ssh-trust", "far", "--config", str(self.file))


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd) -> Site:
    """Return a machine that does not know the server yet."""
    return Site(tmp_path, sshd.port)


def fingerprint(key: Path) -> str:
    """Return the fingerprint of a key, as OpenSSH prints it."""
    argv = [need("ssh-keygen"), "-l", "-f", str(key)]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[1]


def line(site: Site, key: Path) -> str:
    """Return the known_hosts line of a key."""
    return f"{site.name} {public(key)}\n"


def test_without_a_terminal(site: Site, sshd: Sshd) -> None:
    """Without a terminal the keys are shown, nothing is added, and a message says what to do."""
    code, out, errors = site.run()
    assert code == 2
    first, *rows = out.splitlines()
    assert first == site.name
    assert [row.split(maxsplit=2)[1:] for row in rows] == [
        [fingerprint(sshd.host_key(kind)), "new"] for kind in KINDS
    ]
    assert "--fingerprint SHA256:" in errors
    assert not site.known_hosts.exists()


def test_fingerprints(site: Site, sshd: Sshd) -> None:
    """Only keys whose fingerprints are listed are added, each once; a repetition adds nothing."""
    options = [
        word
        for kind in ("ed25519", "rsa:2048")
        for word in ("--fingerprint", fingerprint(sshd.host_key(kind)))
    ]
    code, _, errors = site.run(*options)
    assert (code, errors) == (0, f"Added to {site.known_hosts}: 2.\n")
    content = "".join(line(site, sshd.host_key(kind)) for kind in ("ed25519", "rsa:2048"))
    assert site.known_hosts.read_text() == content
    assert stat.S_IMODE(site.known_hosts.stat().st_mode) == 0o600
    code, out, errors = site.run(*options)
    assert (code, errors) == (0, "")
    assert [row.split(maxsplit=2)[2] for row in out.splitlines()[1:]] == [
        *("known already", "new", "known already")
    ]
    assert site.known_hosts.read_text() == content


def test_an_unknown_fingerprint(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    """A fingerprint that no host has shown is reported; an invalid one is misuse."""
    other_host = fingerprint(make_key(tmp_path / "other"))
    code, _, errors = site.run("--fingerprint", other_host)
    assert (code, errors) == (1, f"No host has shown a key with {other_host}.\n")
    code, _, errors = site.run("--fingerprint", "MD5:00:11")
    assert code == 2
    assert "is no fingerprint" in errors
    assert not site.known_hosts.exists()


@pytest.mark.parametrize("answer", ["yes", " YES "])
def test_yes(site: Site, sshd: Sshd, answer: str) -> None:
    """Yes on the terminal appends all new keys; the next run finds nothing new."""
    site.known_hosts.write_text("other ssh-ed25519 AAAA")
    terminal = site.terminal()
    try:
        terminal.expect(f"New keys of {site.name}: 3.".encode())
        terminal.expect(f"Add them to {site.known_hosts}? (yes/no) ".encode())
        terminal.type(f"{answer}\n".encode())
        terminal.expect(b"Added to")
        assert terminal.process.wait(LIMIT) == 0
    finally:
        terminal.close()
    content = "".join(line(site, sshd.host_key(kind)) for kind in KINDS)
    assert site.known_hosts.read_text() == f"other ssh-ed25519 AAAA\n{content}"
    code, out, errors = site.run()
    assert (code, errors) == (0, "")
    assert out.count("known already") == 3


@pytest.mark.parametrize("answer", ["no", "", "y", "yes yes"])
def test_no(site: Site, answer: str) -> None:
    """Every answer but yes means no."""
    terminal = site.terminal()
    try:
        terminal.expect(b"(yes/no) ")
        terminal.type(f"{answer}\n".encode())
        terminal.expect(b"Nothing is added")
        assert terminal.process.wait(LIMIT) == 1
    finally:
        terminal.close()
    assert not site.known_hosts.exists()


def test_interrupted_question(site: Site) -> None:
    """Ctrl-C at the question adds nothing and leaves no traceback."""
    terminal = site.terminal()
    try:
        terminal.expect(b"(yes/no) ")
        terminal.type(b"ye\x03")
        terminal.expect(b"Interrupted")
        assert terminal.process.wait(LIMIT) == 130
        assert b"Traceback" not in terminal.output
    finally:
        terminal.close()
    assert not site.known_hosts.exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_at_the_question(
    site: Site, number: signal.Signals, code: int, times: int
) -> None:
    """Every signal ends the question: the reactor has restored the handlers."""
    terminal = site.terminal()
    try:
        terminal.expect(b"(yes/no) ")
        for _ in range(times):
            terminal.process.send_signal(number)
        terminal.expect(b"Interrupted: nothing more is added.")
        assert terminal.process.wait(LIMIT) == code
        assert b"Traceback" not in terminal.output
    finally:
        terminal.close()
    assert not site.known_hosts.exists()


def test_a_question_for_each_host(site: Site, sshd: Sshd) -> None:
    """There is one question for each host."""
    site.configure("127.0.0.1", "localhost")
    terminal = site.terminal()
    try:
        terminal.expect(b"(yes/no) ")
        terminal.type(b"no\n")
        terminal.expect(f"New keys of [localhost]:{site.port}: 3.".encode())
        terminal.type(b"yes\n")
        terminal.expect(b"Added to")
        assert terminal.process.wait(LIMIT) == 1
    finally:
        terminal.close()
    names = {text.split()[0] for text in site.known_hosts.read_text().splitlines()}
    assert names == {f"[localhost]:{site.port}"}


def test_a_changed_key(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    """No key is added for a host that is known by another key."""
    old = make_key(tmp_path / "old")
    site.known_hosts.write_text(line(site, old))
    fingerprint_option = "--fingerprint", fingerprint(sshd.host_key("ed25519"))
    for options in (), fingerprint_option:
        code, out, errors = site.run(*options)
        assert code == 1
        assert f"{fingerprint(old)} ({site.known_hosts}, line 1)" in out
        assert "another machine answers in its place" in errors
        assert "remove the old line, named above, by hand" in errors
        assert "is no terminal" not in errors
    assert site.known_hosts.read_text() == line(site, old)


def test_a_revoked_key(site: Site, sshd: Sshd) -> None:
    """A revoked key is never added; the host's other keys may be, and the exit code is 1."""
    revoked_key = f"@revoked * {public(sshd.host_key('ed25519'))}\n"
    site.known_hosts.write_text(revoked_key)
    options = [
        word for kind in KINDS for word in ("--fingerprint", fingerprint(sshd.host_key(kind)))
    ]
    code, out, errors = site.run(*options)
    assert code == 1
    assert "revoked" in out
    assert "a key that is revoked" in errors
    other_keys = "".join(line(site, sshd.host_key(kind)) for kind in KINDS[1:])
    assert site.known_hosts.read_text() == revoked_key + other_keys


@pytest.mark.parametrize("transport", ["conch", "openssh"])
def test_unreachable(site: Site, sshd: Sshd, transport: str) -> None:
    """A host that cannot be reached is reported, with a note about ssh's own configuration."""
    site.configure("no-such-host.invalid", "127.0.0.1", transport=transport)
    code, _, errors = site.run("--fingerprint", fingerprint(sshd.host_key("ed25519")))
    assert code == 1
    assert "has no address" in errors
    assert ("jump hosts" in errors) == (transport == "openssh")
    assert site.known_hosts.read_text() == line(site, sshd.host_key("ed25519"))


def test_a_silent_host(site: Site, sshd: Sshd) -> None:
    """A server that does not answer is given up within the limit."""
    site.configure(sshCmdOptions=["-o", "ConnectTimeout=1"])
    with sshd.suspension():
        code, _, errors = site.run()
    assert code == 1
    assert "does not answer" in errors


def test_interrupted_while_it_waits(site: Site, sshd: Sshd) -> None:
    """Ctrl-C ends the wait for a server."""
    with sshd.suspension():
        process = start(
            *("ssh-trust", "far", "--config", str(site.file)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _until_connected(site.port)
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=patient(LIMIT))
        finally:
            process.kill()
            process.wait(LIMIT)
    assert (process.returncode, out) == (130, b"")
    assert errors == b"Interrupted: nothing is added.\n"


def _until_connected(port: int) -> None:
    """Wait until a client is connected to a port of the loopback."""
    key_line = f"0100007F:{port:04X} 01"
    deadline = time.monotonic() + patient(LIMIT)
    while key_line not in {
        " ".join(row.split()[2:4]) for row in Path("/proc/net/tcp").read_text().splitlines()
    }:
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody connects with port {port}")
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("system", "words"),
    [("nowhere", "There is no system 'nowhere'; there is: mycluster, far."),
     ("mycluster", "The system mycluster is local")],
)  # fmt: skip
def test_systems_that_have_no_host_keys(site: Site, system: str, words: str) -> None:
    """An unknown or local system is misuse."""
    code, out, errors = site.run(system=system)
    assert (code, out) == (2, "")
    assert words in errors


def test_configuration(site: Site, tmp_path: Path) -> None:
    """The configuration is searched as by the gateway; without one the error says what to set."""
    site.configure("127.0.0.1", port=free_port())

    def run(**environ: str) -> tuple[int, str]:
        done = shiftergw("ssh-trust", "far", env=environ)
        return done.returncode, done.stderr

    for environ in {"GWCONFIG": str(site.file)}, {"CONFIG_PATH": str(tmp_path)}:
        code, errors = run(**environ)
        assert code == 1
        assert "cannot be reached" in errors
    code, errors = run(GWCONFIG="", CONFIG_PATH="")
    assert code == 2
    assert "give --config FILE, or set GWCONFIG" in errors
    code, errors = run(GWCONFIG=str(tmp_path / "nowhere"))
    assert code == 2
    assert "cannot be read" in errors


def test_a_file_that_cannot_be_changed(site: Site, sshd: Sshd) -> None:
    """A known_hosts file that cannot be changed is reported before any question."""
    site.configure(knownHosts="/dev/null")
    terminal = site.terminal()
    try:
        terminal.expect(b"/dev/null is not a file")
        assert terminal.process.wait(LIMIT) == 2
        assert b"yes/no" not in terminal.output
    finally:
        terminal.close()
    code, _, errors = site.run("--fingerprint", fingerprint(sshd.host_key("ed25519")))
    assert code == 2
    assert "/dev/null is not a file" in errors


def test_known_hosts_that_cannot_be_read(site: Site) -> None:
    """A known_hosts file with an invalid revocation is an error at once."""
    site.known_hosts.write_text("@revoked * nonsense\n")
    code, out, errors = site.run()
    assert (code, out) == (1, "")
    assert "cannot be understood" in errors
