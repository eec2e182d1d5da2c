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

from tests.cli.command import ENVIRONMENT, PROGRAM
from tests.cli.homes import LIMIT
from tests.cli.terminals import Terminal
from tests.configurations import changed
from tests.parts import free_port, need
from tests.patience import patient
from tests.sshd import Sshd, make_key, public

KINDS = "ed25519", "ecdsa:256", "rsa:2048"


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Give a server with a key of each kind."""
    with Sshd(host_keys=KINDS) as running:
        yield running


class Site:
    """A gateway's machine, whose known hosts are empty, with a system called `far`."""

    def __init__(self, root: Path, port: int) -> None:
        """Write its configuration."""
        self.known = root / "known"
        self.file = root / "imagemanager.json"
        self.port = port
        self.name = f"[127.0.0.1]:{port}"
        self.configure()

    def configure(self, *hosts: str, **keys: Any) -> None:
        """Change the system's hosts, and what is in its `ssh`."""
        ssh = {"username": "u", "imageDir": "/i", "port": self.port, "knownHosts": "known", **keys}
        far = {"accesstype": "remote", "host": list(hosts or ["127.0.0.1"]), "ssh": ssh}
        self.file.write_text(json.dumps(changed({"Platforms/far": far})))

    def run(self, *options: str, system: str = "far") -> tuple[int, str, str]:
        """Run the command without a terminal; return exit code, output and what it said."""
        done = subprocess.run(
            [*PROGRAM, "ssh-trust", system, "--config", str(self.file), *options],
            env=ENVIRONMENT,
            input="yes\n",  # which must not count
            capture_output=True,
            text=True,
            timeout=patient(LIMIT),
            start_new_session=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def terminal(self) -> Terminal:
        """Run the command on a terminal."""
        return Terminal(ENVIRONMENT, "ssh-trust", "far", "--config", str(self.file))


@pytest.fixture
def site(tmp_path: Path, sshd: Sshd) -> Site:
    """Give a machine that knows nothing of the server yet."""
    return Site(tmp_path, sshd.port)


def fingerprint(key: Path) -> str:
    """Return a key's fingerprint, as OpenSSH has it."""
    argv = [need("ssh-keygen"), "-l", "-f", str(key)]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[1]


def line(site: Site, key: Path) -> str:
    """Return the line that makes a key known."""
    return f"{site.name} {public(key)}\n"


def test_nobody_to_ask(site: Site, sshd: Sshd) -> None:
    """Without a terminal the keys are shown, nothing is added, and it is said what to do."""
    code, out, said = site.run()
    assert code == 2
    first, *rows = out.splitlines()
    assert first == site.name
    assert [row.split(maxsplit=2)[1:] for row in rows] == [
        [fingerprint(sshd.host_key(kind)), "new"] for kind in KINDS
    ]
    assert "--fingerprint SHA256:" in said
    assert not site.known.exists()


def test_fingerprints(site: Site, sshd: Sshd) -> None:
    """Exactly the keys whose fingerprints are given are added, and once; a repetition is fine."""
    options = [
        word
        for kind in ("ed25519", "rsa:2048")
        for word in ("--fingerprint", fingerprint(sshd.host_key(kind)))
    ]
    code, _, said = site.run(*options)
    assert (code, said) == (0, f"Added to {site.known}: 2.\n")
    added = "".join(line(site, sshd.host_key(kind)) for kind in ("ed25519", "rsa:2048"))
    assert site.known.read_text() == added
    assert stat.S_IMODE(site.known.stat().st_mode) == 0o600
    code, out, said = site.run(*options)
    assert (code, said) == (0, "")
    assert [row.split(maxsplit=2)[2] for row in out.splitlines()[1:]] == [
        *("known already", "new", "known already")
    ]
    assert site.known.read_text() == added


def test_a_fingerprint_of_no_key(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    """A fingerprint that no host has shown is told; what is none is misuse."""
    other = fingerprint(make_key(tmp_path / "other"))
    code, _, said = site.run("--fingerprint", other)
    assert (code, said) == (1, f"No host has shown a key with {other}.\n")
    code, _, said = site.run("--fingerprint", "MD5:00:11")
    assert code == 2
    assert "is no fingerprint" in said
    assert not site.known.exists()


@pytest.mark.parametrize("answer", ["yes", " YES "])
def test_yes(site: Site, sshd: Sshd, answer: str) -> None:
    """Yes on the terminal adds all that is new, behind what was there; then all is known."""
    site.known.write_text("other ssh-ed25519 AAAA")
    terminal = site.terminal()
    try:
        terminal.expect(f"New keys of {site.name}: 3.".encode())
        terminal.expect(f"Add them to {site.known}? (yes/no) ".encode())
        terminal.type(f"{answer}\n".encode())
        terminal.expect(b"Added to")
        assert terminal.process.wait(LIMIT) == 0
    finally:
        terminal.close()
    added = "".join(line(site, sshd.host_key(kind)) for kind in KINDS)
    assert site.known.read_text() == f"other ssh-ed25519 AAAA\n{added}"
    code, out, said = site.run()
    assert (code, said) == (0, "")
    assert out.count("known already") == 3


@pytest.mark.parametrize("answer", ["no", "", "y", "yes yes"])
def test_no(site: Site, answer: str) -> None:
    """Everything but yes is no."""
    terminal = site.terminal()
    try:
        terminal.expect(b"(yes/no) ")
        terminal.type(f"{answer}\n".encode())
        terminal.expect(b"Nothing is added")
        assert terminal.process.wait(LIMIT) == 1
    finally:
        terminal.close()
    assert not site.known.exists()


def test_interrupted_question(site: Site) -> None:
    """Ctrl-C at the question adds nothing and leaves no traceback."""
    terminal = site.terminal()
    try:
        terminal.expect(b"(yes/no) ")
        terminal.type(b"ye\x03")
        terminal.expect(b"Interrupted")
        assert terminal.process.wait(LIMIT) == 130
        assert b"Traceback" not in terminal.shown
    finally:
        terminal.close()
    assert not site.known.exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_at_the_question(
    site: Site, number: signal.Signals, code: int, times: int
) -> None:
    """As Ctrl-C: the reactor that has looked at the hosts left no handler in the way."""
    terminal = site.terminal()
    try:
        terminal.expect(b"(yes/no) ")
        for _ in range(times):
            terminal.process.send_signal(number)
        terminal.expect(b"Interrupted: nothing more is added.")
        assert terminal.process.wait(LIMIT) == code
        assert b"Traceback" not in terminal.shown
    finally:
        terminal.close()
    assert not site.known.exists()


def test_a_question_for_each_host(site: Site, sshd: Sshd) -> None:
    """Each host is asked about, and has its own answer."""
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
    names = {text.split()[0] for text in site.known.read_text().splitlines()}
    assert names == {f"[localhost]:{site.port}"}


def test_a_changed_key(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    """A host that is known by another key gets nothing added, whoever wants it."""
    old = make_key(tmp_path / "old")
    site.known.write_text(line(site, old))
    given = "--fingerprint", fingerprint(sshd.host_key("ed25519"))
    for options in (), given:
        code, out, said = site.run(*options)
        assert code == 1
        assert f"{fingerprint(old)} ({site.known}, line 1)" in out
        assert "another machine answers in its place" in said
        assert "remove the old line, named above, by hand" in said
        assert "is no terminal" not in said
    assert site.known.read_text() == line(site, old)


def test_a_revoked_key(site: Site, sshd: Sshd) -> None:
    """A revoked key is never added; others of the host may be, and the exit code tells of it."""
    revoked = f"@revoked * {public(sshd.host_key('ed25519'))}\n"
    site.known.write_text(revoked)
    options = [
        word for kind in KINDS for word in ("--fingerprint", fingerprint(sshd.host_key(kind)))
    ]
    code, out, said = site.run(*options)
    assert code == 1
    assert "revoked" in out
    assert "a key that is revoked" in said
    others = "".join(line(site, sshd.host_key(kind)) for kind in KINDS[1:])
    assert site.known.read_text() == revoked + others


@pytest.mark.parametrize("transport", ["conch", "openssh"])
def test_unreachable(site: Site, sshd: Sshd, transport: str) -> None:
    """A host that cannot be reached is told, with what openssh may know and we do not."""
    site.configure("no-such-host.invalid", "127.0.0.1", transport=transport)
    code, _, said = site.run("--fingerprint", fingerprint(sshd.host_key("ed25519")))
    assert code == 1
    assert "has no address" in said
    assert ("jump hosts" in said) == (transport == "openssh")
    assert site.known.read_text() == line(site, sshd.host_key("ed25519"))


def test_a_silent_host(site: Site, sshd: Sshd) -> None:
    """A server that does not answer is given up within the limit."""
    site.configure(sshCmdOptions=["-o", "ConnectTimeout=1"])
    with sshd.suspended():
        code, _, said = site.run()
    assert code == 1
    assert "does not answer" in said


def test_interrupted_while_it_waits(site: Site, sshd: Sshd) -> None:
    """Ctrl-C ends the wait for a server."""
    with sshd.suspended():
        process = subprocess.Popen(
            [*PROGRAM, "ssh-trust", "far", "--config", str(site.file)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _until_connected(site.port)
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=patient(LIMIT))
        finally:
            process.kill()
            process.wait(LIMIT)
    assert (process.returncode, out) == (130, b"")
    assert said == b"Interrupted: nothing is added.\n"


def _until_connected(port: int) -> None:
    """Wait until somebody is connected with a port of the loopback."""
    wanted = f"0100007F:{port:04X} 01"
    deadline = time.monotonic() + patient(LIMIT)
    while wanted not in {
        " ".join(row.split()[2:4]) for row in Path("/proc/net/tcp").read_text().splitlines()
    }:
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody connects with port {port}")
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("system", "told"),
    [("nowhere", "There is no system 'nowhere'; there is: mycluster, far."),
     ("mycluster", "The system mycluster is local")],
)  # fmt: skip
def test_systems_that_have_no_host_keys(site: Site, system: str, told: str) -> None:
    """A system that is not there, or is local, is misuse."""
    code, out, said = site.run(system=system)
    assert (code, out) == (2, "")
    assert told in said


def test_configuration(site: Site, tmp_path: Path) -> None:
    """The configuration is found as the gateway finds it; without one it is said what to give."""
    site.configure("127.0.0.1", port=free_port())

    def run(**environ: str) -> tuple[int, str]:
        env = {**ENVIRONMENT, **environ}
        argv = [*PROGRAM, "ssh-trust", "far"]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    for environ in {"GWCONFIG": str(site.file)}, {"CONFIG_PATH": str(tmp_path)}:
        code, said = run(**environ)
        assert code == 1
        assert "cannot be reached" in said
    code, said = run(GWCONFIG="", CONFIG_PATH="")
    assert code == 2
    assert "give --config FILE, or set GWCONFIG" in said
    code, said = run(GWCONFIG=str(tmp_path / "nowhere"))
    assert code == 2
    assert "cannot be read" in said


def test_a_file_that_cannot_be_changed(site: Site, sshd: Sshd) -> None:
    """What keeps a key from being added is told before anybody is asked."""
    site.configure(knownHosts="/dev/null")
    terminal = site.terminal()
    try:
        terminal.expect(b"/dev/null is not a file")
        assert terminal.process.wait(LIMIT) == 2
        assert b"yes/no" not in terminal.shown
    finally:
        terminal.close()
    code, _, said = site.run("--fingerprint", fingerprint(sshd.host_key("ed25519")))
    assert code == 2
    assert "/dev/null is not a file" in said


def test_known_hosts_that_cannot_be_read(site: Site) -> None:
    """A file that revokes something that cannot be understood ends it at once."""
    site.known.write_text("@revoked * nonsense\n")
    code, out, said = site.run()
    assert (code, out) == (1, "")
    assert "cannot be understood" in said
