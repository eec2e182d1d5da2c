"""Adding keys to a file of known hosts keeps its content, and OpenSSH finds the new keys."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from shiftergw.errors import ConfigurationError
from shiftergw.plumbing.locks import try_lock, unlock
from shiftergw.ssh import known_hosts_file
from shiftergw.ssh.known_hosts import KnownHosts
from shiftergw.ssh.known_hosts_file import add, check_addable, check_host, line_of
from tests.parts import need, need_root
from tests.sshd import make_key, public

LINE = "h ssh-ed25519 AAAA"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a missing file in a missing directory."""
    return tmp_path / ".ssh" / "known_hosts"


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_file_and_directory_are_made(path: Path) -> None:
    """Missing file and directory are created, private to their owner."""
    before = os.umask(0)
    try:
        add(path, [LINE])
    finally:
        os.umask(before)
    assert path.read_text() == f"{LINE}\n"
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "between"),
    [
        (b"", b""),
        (b"one\n", b""),
        (b"one", b"\n"),
        (b"one\r\n\xff\xfe \0 # odd\n\n\x0b", b"\n"),
    ],
)
def test_lines_stay_as_they_are(tmp_path: Path, content: bytes, between: bytes) -> None:
    """Old content is unchanged, except that an incomplete last line gets a newline."""
    path = tmp_path / "known_hosts"
    path.write_bytes(content)
    path.chmod(0o644)
    add(path, [LINE, f"{LINE}B"])
    assert path.read_bytes() == content + between + f"{LINE}\n{LINE}B\n".encode()
    assert mode(path) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_no_line_twice(path: Path) -> None:
    """An existing line is not added again, and the file is not rewritten."""
    add(path, [LINE])
    before = path.stat()
    add(path, [LINE])
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    add(path, [LINE, "other"])
    assert path.read_text() == f"{LINE}\nother\n"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link(tmp_path: Path, exists: bool) -> None:
    """If known_hosts is a symbolic link, its target is changed or created."""
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "hosts"
    if exists:
        target.write_text("one\n")
    link = tmp_path / "known_hosts"
    link.symlink_to("far/hosts")
    add(link, [LINE])
    assert link.is_symlink()
    assert target.read_text() == ("one\n" if exists else "") + f"{LINE}\n"


def test_openssh_finds_it(tmp_path: Path, path: Path) -> None:
    """`ssh` and our own client find the lines, with and without a port."""
    key = public(make_key(tmp_path / "key"))
    blob = base64.b64decode(key.split()[1])
    add(path, [line_of("H.example", 22, blob), line_of("fd00::1", 2222, blob)])
    assert path.read_text() == f"h.example {key}\n[fd00::1]:2222 {key}\n"
    for name in "h.example", "[fd00::1]:2222":
        argv = [need("ssh-keygen"), "-F", name, "-f", str(path)]
        assert key in subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
    known_hosts = KnownHosts.read([path], must_exist=True)
    known_hosts.check("h.example", 22, blob)
    known_hosts.check("FD00::1", 2222, blob)


@pytest.mark.parametrize("host", ["", "a b", "a,b", "*", "!a", "|1|a|b", "@revoked", "#a", "a\nb"])
def test_hosts_with_special_characters(host: str) -> None:
    """A host name with a special meaning in the file is refused."""
    with pytest.raises(ConfigurationError, match="not a name or address"):
        check_host(host)


def refusal(path: Path) -> ConfigurationError:
    """Return the error for a file that cannot be changed; `check_addable` raises it too."""
    with pytest.raises(ConfigurationError) as excinfo:
        check_addable(path)
    with pytest.raises(ConfigurationError) as second_excinfo:
        add(path, [LINE])
    assert str(second_excinfo.value) == str(excinfo.value)
    return excinfo.value


def test_special_files(tmp_path: Path) -> None:
    """A device, a pipe or a directory is refused."""
    os.mkfifo(tmp_path / "pipe")
    for path in Path("/dev/null"), tmp_path / "pipe", tmp_path:
        assert "is not a file" in refusal(path).what
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be changed" in refusal(tmp_path / "loop").what


def test_a_missing_directory(tmp_path: Path) -> None:
    """One directory is created, but not a whole path, which may be misspelled."""
    with pytest.raises(ConfigurationError, match="cannot be changed: No such file"):
        add(tmp_path / "one" / "two" / "known_hosts", [LINE])
    assert list(tmp_path.iterdir()) == []


def test_files_of_another_user(tmp_path: Path) -> None:
    """Root changes no file of another user, and creates none in its directory."""
    need_root()
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 12345, 12345)
    for path in home / "known_hosts", home / ".ssh" / "known_hosts":
        assert "belongs to another user" in refusal(path).what
    file = tmp_path / "known_hosts"
    file.write_text("one\n")
    os.chown(file, 12345, 12345)
    assert "belongs to another user" in refusal(file).what
    assert file.read_text() == "one\n"
    assert list(home.iterdir()) == []


def test_a_directory_without_permission(tmp_path: Path) -> None:
    """A user without write permission gets an error, and nothing is left behind."""
    need_root()
    tmp_path.chmod(0o755)
    child = os.fork()
    if not child:  # another user, in a child process
        try:
            os.setuid(12345)
            refusal(tmp_path / "known_hosts")
        except BaseException:  # noqa: BLE001 - told by the exit status
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert list(tmp_path.iterdir()) == []


def test_many_at_once(path: Path) -> None:
    """Lines that other processes add at the same time are not lost."""
    lines = [f"h{number} ssh-ed25519 AAAA" for number in range(20)]
    adding = [threading.Thread(target=add, args=(path, [line])) for line in lines]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()
    assert sorted(path.read_text().splitlines()) == sorted(lines)
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for another one's change has a limit, and then nothing has changed."""
    monkeypatch.setattr(known_hosts_file, "LOCK_SECONDS", 0.2)
    path = tmp_path / "known_hosts"
    lock = tmp_path / ".known_hosts.lock"
    descriptor = try_lock(lock)
    assert descriptor is not None
    try:
        with pytest.raises(ConfigurationError, match="has not ended"):
            add(path, [LINE])
    finally:
        unlock(lock, descriptor)
    assert not path.exists()
