"""The file of logins: its lines, its permissions, its lock."""

from __future__ import annotations

import fcntl
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.cli import logins
from shiftergw.cli.exits import Misuse
from shiftergw.cli.logins import LoginFile, check_key, credentials_of, home, replace_credential
from tests.parts import lacking
from tests.patience import patient

FIRST = "MUNGE:AwQDAAC1:"
SECOND = "MUNGE:AwQFAA==:"

LINES = st.lists(
    st.one_of(
        st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")),
        st.sampled_from(
            [
                f"mycluster:default={FIRST}".encode(),
                f"mycluster:quay.io={FIRST}".encode(),
                f"other:quay.io={FIRST}".encode(),
                b"mycluster:quay.io",
                b"# mycluster:quay.io",
                b"",
                b"\r",
            ]
        ),
    ),
    max_size=8,
)


def test_a_database_that_fails_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory service that fails once is queried again."""
    entry = pwd.getpwuid(os.getuid())
    answers = iter([None, entry])

    def look_up(uid: int) -> pwd.struct_passwd:
        if (logins := next(answers)) is None:
            raise KeyError(uid)
        return logins

    monkeypatch.setattr(pwd, "getpwuid", look_up)
    assert home() == Path(entry.pw_dir)


@pytest.mark.parametrize("directory", ["", "relative"])
def test_a_user_without_a_home(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a home the command is refused; the current directory is not used."""
    fields = [*pwd.getpwuid(os.getuid())]
    fields[5] = directory
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd(fields))
    with pytest.raises(Misuse, match="has no home for you"):
        home()


def test_a_user_that_is_unknown_to_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the uid of the user."""
    monkeypatch.setattr(logins, "_DATABASE_WAITS", (0.0,))
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_001)
    with pytest.raises(Misuse, match="does not have you, 4000000001"):
        home()


@given(lines=LINES, is_ended=st.booleans())
def test_a_change_leaves_other_lines_as_they_are(lines: list[bytes], is_ended: bool) -> None:
    """A stored login is read again, and other lines are not changed, except for a missing end."""
    content = b"\n".join(lines) + (b"\n" if is_ended and lines else b"")
    key = b"mycluster:quay.io=MUNGE:"
    for credential in (SECOND, None):
        after = replace_credential(content, "mycluster", "quay.io", credential)
        assert credentials_of(after, "mycluster").get("quay.io") == credential
        other_lines = [line for line in content.split(b"\n") if not line.startswith(key)]
        lines_after = [line for line in after.split(b"\n") if not line.startswith(key)]
        assert b"\n".join(lines_after).rstrip(b"\n") == b"\n".join(other_lines).rstrip(b"\n")


def test_a_login_replaces_the_old_one() -> None:
    """One line for the location remains, in place of the first; `shifterimg` reads it, too."""
    content = (
        f"a:x={FIRST}\nmycluster:x={FIRST}\nmycluster:y={FIRST}\nmycluster:x={FIRST}\n".encode()
    )
    assert replace_credential(content, "mycluster", "x", SECOND) == (
        f"a:x={FIRST}\nmycluster:x={SECOND}\nmycluster:y={FIRST}\n".encode()
    )
    assert replace_credential(b"", "mycluster", "x", SECOND) == f"mycluster:x={SECOND}\n".encode()
    assert replace_credential(b"no end", "mycluster", "x", SECOND) == (
        f"no end\nmycluster:x={SECOND}\n".encode()
    )


def test_locations_with_colons() -> None:
    """The port of a registry belongs to the location; logins of other systems are not returned."""
    content = f"s:reg:5000={FIRST}\ns2:reg:5000={SECOND}\ns:={SECOND}\nnonsense\n".encode()
    assert credentials_of(content, "s") == {"reg:5000": FIRST, "": SECOND}
    assert credentials_of(content, "reg") == {}


@pytest.mark.parametrize(
    ("system", "location"),
    [("a:b", "x"), ("a=b", "x"), ("", "x"), ("a b", "x"), ("a", ""), ("a", "x=y"), ("a", "x\ny")],
)
def test_names_that_would_break_the_file(system: str, location: str) -> None:
    """Names that `shifterimg` would read as another login or line are refused."""
    with pytest.raises(Misuse, match="cannot be"):
        check_key(system, location)
    check_key("mycluster", "reg.example:5000/a")


def test_the_permissions_of_the_file(tmp_path: Path) -> None:
    """The directory is 0700, the file 0600, whatever they were before; no other file is left."""
    file = LoginFile(tmp_path)
    assert file.read() == b""
    file.change(lambda content: content + b"one\n")
    file.path.chmod(0o644)
    file.path.parent.chmod(0o755)
    file.change(lambda content: content + b"two\n")
    assert file.read() == b"one\ntwo\n"
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert {path.name for path in file.path.parent.iterdir()} == {".cred", ".cred.lock"}


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    """The file is replaced by a rename: until then readers see the whole old file."""
    file = LoginFile(tmp_path)
    file.change(lambda _: b"old\n")
    with file.path.open("rb") as reader:
        file.change(lambda _: b"new\n")
        assert reader.read() == b"old\n"

    def message(content: bytes) -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        file.change(message)
    assert file.read() == b"new\n"


def _keep_content(content: bytes) -> bytes:
    return content


ADD = """
import sys, time
from pathlib import Path
from shiftergw.cli.logins import LoginFile

def add(content):
    time.sleep(0.01)
    return content + sys.argv[2].encode() + b"\\n"

for _ in range(5):
    LoginFile(Path(sys.argv[1])).change(add)
"""


def test_no_change_is_lost(tmp_path: Path) -> None:
    """Concurrent changes by two processes are made one after the other."""
    processes = [
        subprocess.Popen([sys.executable, "-c", ADD, str(tmp_path), name]) for name in ("a", "b")
    ]
    assert [process.wait(patient(60)) for process in processes] == [0, 0]
    assert sorted(LoginFile(tmp_path).read().split()) == [b"a"] * 5 + [b"b"] * 5


def test_the_wait_for_the_lock_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the lock, and nothing is changed; readers need no lock."""
    monkeypatch.setattr(logins, "LOCK_LIMIT", 0.2)
    file = LoginFile(tmp_path)
    file.change(lambda _: b"old\n")
    with (file.path.parent / ".cred.lock").open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(Misuse, match=r"Another login or logout has held .*\.cred\.lock"):
            file.change(lambda _: b"new\n")
        assert file.read() == b"old\n"
    file.change(lambda _: b"new\n")
    assert file.read() == b"new\n"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620])
def test_a_file_that_is_open_to_others(tmp_path: Path, mode: int) -> None:
    """The file is read, with a warning that says what to do; a change closes the file."""
    file = LoginFile(tmp_path)
    file.change(lambda _: b"x\n")
    assert (file.read(), file.warning) == (b"x\n", "")
    file.path.chmod(mode)
    assert file.read() == b"x\n"
    assert f"0{mode:o} of {file.path} are too open" in file.warning
    assert f"chmod 600 {file.path}" in file.warning
    file.change(_keep_content)
    mode_after = LoginFile(tmp_path)
    assert (mode_after.read(), mode_after.warning) == (b"x\n", "")


def test_links_are_refused(tmp_path: Path) -> None:
    """Neither file nor directory may be a link, not even to files of the user."""
    target = tmp_path / "elsewhere"
    LoginFile(target).path.parent.mkdir(parents=True)
    LoginFile(target).path.write_bytes(b"bait\n")
    home = tmp_path / "home"
    home.mkdir()
    file = LoginFile(home)
    file.path.parent.symlink_to(target / ".udiRoot")
    for use in (file.read, lambda: file.change(_keep_content)):
        with pytest.raises(Misuse, match="no links"):
            use()
    file.path.parent.unlink()
    file.path.parent.mkdir()
    file.path.symlink_to(target / ".udiRoot" / ".cred")
    for use in (file.read, lambda: file.change(_keep_content)):
        with pytest.raises(Misuse, match="no links"):
            use()
    assert (target / ".udiRoot" / ".cred").read_bytes() == b"bait\n"


@pytest.mark.parametrize("name", [".udiRoot", ".udiRoot/.cred"])
def test_files_of_other_users_are_refused(tmp_path: Path, name: str) -> None:
    """A file of another user may hold that user's logins."""
    if os.geteuid() != 0:
        lacking("only root can give a file away")
    file = LoginFile(tmp_path)
    file.change(lambda _: b"x\n")
    os.chown(tmp_path / name, 12345, 12345)
    for use in (file.read, lambda: file.change(_keep_content)):
        with pytest.raises(Misuse, match="belongs to somebody else"):
            use()


def test_special_files_are_refused(tmp_path: Path) -> None:
    """The command does not wait for a pipe; a directory and a missing home are errors."""
    file = LoginFile(tmp_path)
    file.path.parent.mkdir()
    os.mkfifo(file.path)
    with pytest.raises(Misuse, match="is no file"):
        file.read()
    file.path.unlink()
    file.path.mkdir()
    with pytest.raises(Misuse, match=r"\.cred"):
        file.read()
    with pytest.raises(Misuse, match="cannot be used: No such file"):
        LoginFile(tmp_path / "nowhere").change(_keep_content)
