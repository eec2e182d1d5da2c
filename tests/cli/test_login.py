"""login and logout as processes, with a real munge daemon, with a terminal and without one."""

from __future__ import annotations

import signal
import stat
from pathlib import Path

import pytest

from tests.cli.homes import LIMIT, Home
from tests.cli.terminals import Terminal
from tests.munged import MungeDaemon


@pytest.fixture
def home(tmp_path: Path, munged: MungeDaemon) -> Home:
    """Return a home without logins."""
    return Home(tmp_path, munged)


OPTIONS = ("--username", "ann", "--password-stdin")


def test_login_without_a_terminal(home: Home) -> None:
    """The password comes from standard input; only a NUL or a second line is refused."""
    code, out, errors = home.run("login", *OPTIONS, stdin=b'pa:ss \\"w\xc3\xb6rd\x1b \n')
    assert (code, out) == (0, b"")
    assert errors.startswith(b"The login for default on mycluster is kept in ")
    assert b"pa:ss" not in errors
    assert home.logins() == {"mycluster:default": b'ann:pa:ss \\"w\xc3\xb6rd\x1b '}
    assert stat.S_IMODE(home.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.file.parent.stat().st_mode) == 0o700


def test_logins_are_replaced_and_removed(home: Home) -> None:
    """A location has one login; logins for other locations and systems are not changed."""
    assert home.run("login", "reg.example:5000", *OPTIONS, stdin=b"one\n")[0] == 0
    assert home.run("login", *OPTIONS, stdin=b"two\n")[0] == 0
    other_system = ("--system", "other", "login", "reg.example:5000", *OPTIONS)
    assert home.run(*other_system, stdin=b"3")[0] == 0
    before = home.file.read_bytes().splitlines()
    bob = ("login", "-u", "bob", "--password-stdin", "reg.example:5000")
    assert home.run(*bob, stdin=b"four\r\n")[0] == 0
    assert home.file.read_bytes().splitlines()[1:] == before[1:]
    assert home.logins() == {
        "mycluster:reg.example:5000": b"bob:four",
        "mycluster:default": b"ann:two",
        "other:reg.example:5000": b"ann:3",
    }
    assert home.run("logout", "reg.example:5000")[0] == 0
    assert list(home.logins()) == ["mycluster:default", "other:reg.example:5000"]
    assert home.run("logout")[0] == 0
    code, _, errors = home.run("logout")
    assert code == 4
    assert b"There is no login for default on mycluster" in errors


def test_prefixes_of_registries(home: Home) -> None:
    """`https://` and a slash at the end are not part of a registry's name."""
    for place in ("https://reg.example:5000/", "docker://ghcr.io", "oci://quay.io"):
        assert home.run("login", place, *OPTIONS, stdin=b"one\n")[0] == 0
    assert list(home.logins()) == [
        f"mycluster:{name}" for name in ("reg.example:5000", "ghcr.io", "quay.io")
    ]
    home.file.write_text(home.file.read_text().replace(":ghcr.io=", ":https://ghcr.io/="))
    for place in ("reg.example:5000/", "https://ghcr.io/", "docker://quay.io/"):
        assert home.run("logout", place)[0] == 0
    assert home.logins() == {}


@pytest.mark.parametrize(
    ("user", "password"),
    [("ann", b""), ("ann", b"\n"), ("", b"x\n"), ("a:b", b"x\n"), ("ann", b"\0\n"),
     ("ann", b"ann\nx\n"), ("ann", b"x" * 100_000)],
)  # fmt: skip
def test_invalid_logins(home: Home, user: str, password: bytes) -> None:
    """A name or a password that cannot be stored is refused, and nothing is written."""
    code, _, errors = home.run("login", "--username", user, "--password-stdin", stdin=password)
    assert code == 2
    assert b"Nothing is kept" in errors
    assert not home.file.exists()


@pytest.mark.parametrize("arguments", [(), ("--username", "ann"), ("--password-stdin",)])
def test_without_a_terminal_and_options(home: Home, arguments: tuple[str, ...]) -> None:
    """Without a terminal there is no question; the message says which options to use."""
    code, out, errors = home.run("login", *arguments, stdin=b"ann\nhush\n")
    assert (code, out) == (2, b"")
    assert b"--username NAME --password-stdin" in errors
    assert b"hush" not in errors
    assert b"password: " not in errors
    assert not home.file.exists()


def test_a_file_that_others_can_read(home: Home) -> None:
    """A warning is printed, as by ssh for its keys; the next login closes the file."""
    assert home.run("login", *OPTIONS, stdin=b"one\n")[0] == 0
    home.file.chmod(0o644)
    code, _, errors = home.run("logout", "nowhere")
    assert (code, errors.count(b"Warning: the permissions 0644")) == (4, 1)
    code, _, errors = home.run("login", "ghcr.io", *OPTIONS, stdin=b"two\n")
    assert (code, errors.count(b"Warning: the permissions 0644")) == (0, 1)
    assert b"Warning" not in home.run("logout", "nowhere")[2]


def test_misuse(home: Home) -> None:
    """An invalid location, or a file that is a link, is reported before any question."""
    assert home.run("login", "a=b", *OPTIONS, stdin=b"x\n")[0] == 2
    home.file.parent.mkdir()
    home.file.symlink_to("/dev/null")
    code, _, errors = home.run("login", *OPTIONS, stdin=b"x\n")
    assert code == 2
    assert b"Nothing is kept" not in errors
    assert home.run("logout")[0] == 2


def test_munge_is_away(home: Home) -> None:
    """Without munge no login is stored, and the exit code is not that of misuse."""
    code, _, errors = home.run("--munge-socket", "/nonexistent", "login", *OPTIONS, stdin=b"hush\n")
    assert code == 3
    assert b"munge does not answer" in errors
    assert b"/nonexistent: there is no such socket" in errors
    assert b"hush" not in errors
    assert not home.file.exists()


def test_login_on_a_terminal(home: Home) -> None:
    """Questions are on the terminal; the password is not shown, later input is."""
    terminal = Terminal(home.env, "login", "ghcr.io")
    try:
        terminal.expect(b"ghcr.io user: ")
        terminal.type(b"ann\n")
        terminal.expect(b"ghcr.io password: ")
        assert not terminal.echoes()
        terminal.type(b"hush\n")
        terminal.expect(b"is kept in")
        assert terminal.process.wait(LIMIT) == 0
        assert terminal.echoes()
        assert b"ann" in terminal.output
        assert b"hush" not in terminal.output
    finally:
        terminal.close()
    assert home.logins() == {"mycluster:ghcr.io": b"ann:hush"}


def test_a_user_name_on_the_command_line(home: Home) -> None:
    """With `--username` only the password is asked for."""
    terminal = Terminal(home.env, "login", "ghcr.io", "--username", "ann")
    try:
        terminal.expect(b"ghcr.io password: ")
        assert b"user:" not in terminal.output
        terminal.type(b"hush\n")
        terminal.expect(b"is kept in")
        assert terminal.process.wait(LIMIT) == 0
    finally:
        terminal.close()
    assert home.logins() == {"mycluster:ghcr.io": b"ann:hush"}


def test_interrupted_login(home: Home) -> None:
    """Ctrl-C at the password restores the terminal and stores nothing."""
    terminal = Terminal(home.env, "login")
    try:
        terminal.expect(b"user: ")
        terminal.type(b"ann\n")
        terminal.expect(b"password: ")
        terminal.type(b"hus\x03")
        terminal.expect(b"Interrupted")
        assert terminal.process.wait(LIMIT) == 130
        assert terminal.echoes()
        assert b"Traceback" not in terminal.output
    finally:
        terminal.close()
    assert not home.file.exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_at_the_password(
    home: Home, number: signal.Signals, code: int, times: int
) -> None:
    """After any signal, once or twice, the terminal shows input again."""
    terminal = Terminal(home.env, "login", "--username", "ann")
    try:
        terminal.expect(b"password: ")
        assert not terminal.echoes()
        for _ in range(times):
            terminal.process.send_signal(number)
        terminal.expect(b"Interrupted: nothing is kept.")
        assert terminal.process.wait(LIMIT) == code
        assert terminal.echoes()
        assert b"Traceback" not in terminal.output
    finally:
        terminal.close()
    assert not home.file.exists()
