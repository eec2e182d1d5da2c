"""The seal on stored logins."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from shiftergw.errors import ConfigurationError, GatewayError
from shiftergw.plumbing.seal import Seal
from tests.parts import small_disk


def test_what_is_sealed_can_be_opened(tmp_path: Path) -> None:
    """Another process with the same key file opens what was sealed, and nobody reads it before."""
    path = tmp_path / "key"
    ciphertext = Seal.from_file(path).close("user:päss", "record 1")
    assert "user" not in ciphertext
    assert b"user" not in base64.b64decode(ciphertext)
    assert Seal.from_file(path).open(ciphertext, "record 1") == "user:päss"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_fingerprints() -> None:
    """The same text has the same one in each context; they tell nothing without the key."""
    seal = Seal(bytes(32))
    one = seal.fingerprint("alice:secret", "login")
    assert one == Seal(bytes(32)).fingerprint("alice:secret", "login")
    digests = {
        seal.fingerprint("alice:secreu", "login"),
        seal.fingerprint("alice:secret", "logim"),
        Seal(b"k" * 32).fingerprint("alice:secret", "login"),
        one,
    }
    assert len(digests) == 4
    assert all(len(digest) == 32 and "alice" not in digest for digest in digests)


def test_sealing_twice_differs() -> None:
    """The same text never looks the same: no one sees that two users share a password."""
    seal = Seal(bytes(32))
    assert seal.close("text", "context") != seal.close("text", "context")


@pytest.mark.parametrize(
    "ciphertext", ["", "AAAA", "no base64!", base64.b64encode(bytes(60)).decode()]
)
def test_damaged_text_is_refused(ciphertext: str) -> None:
    """Text that was never sealed is an error with a remedy, whatever it looks like."""
    with pytest.raises(GatewayError, match="SecretKeyFile"):
        Seal(bytes(32)).open(ciphertext, "context")


def test_another_key_or_context_is_refused() -> None:
    """A sealed text opens with its own key and in its own place only."""
    ciphertext = Seal(bytes(32)).close("text", "record 1")
    with pytest.raises(GatewayError):
        Seal(bytes(32)).open(ciphertext, "record 2")
    with pytest.raises(GatewayError):
        Seal(b"x" * 32).open(ciphertext, "record 1")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """A key file must be closed to everybody else."""
    path = tmp_path / "key"
    Seal.from_file(path)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Seal.from_file(path)


@pytest.mark.parametrize("content", [b"", b"AAAA\n", b"A", os.urandom(200)])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """A key file that holds anything but 32 bytes in base64 is not used."""
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="32 bytes"):
        Seal.from_file(path)


def test_a_key_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A missing directory is the operator's to mend."""
    with pytest.raises(ConfigurationError, match="No such file"):
        Seal.from_file(tmp_path / "no" / "key")


def test_a_key_without_an_end_is_refused(tmp_path: Path) -> None:
    """A named pipe, or a device, in its place neither blocks nor fills the memory."""
    pipe, device = tmp_path / "pipe", tmp_path / "device"
    os.mkfifo(pipe, 0o600)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        with pytest.raises(ConfigurationError, match="cannot be read: Not a regular file"):
            Seal.from_file(path)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """The remedy is room, and not a key that is made by hand."""
    with small_disk(tmp_path / "state", "size=64k"):
        with suppress(OSError):
            (tmp_path / "state" / "rest").write_bytes(bytes(1 << 20))
        with pytest.raises(ConfigurationError, match="No space left") as excinfo:
            Seal.from_file(tmp_path / "state" / "secret.key")
        assert excinfo.value.remedy == "Make room on its file system."


def test_all_who_start_at_once_get_one_key(tmp_path: Path) -> None:
    """Several starting at the same moment never see half a key, and all end with the same."""
    path = tmp_path / "key"
    seals: list[Seal] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        seals.append(Seal.from_file(path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ciphertext = seals[0].close("text", "context")
    assert [seal.open(ciphertext, "context") for seal in seals] == ["text"] * 8
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_a_key_is_checked_without_making_it(tmp_path: Path) -> None:
    """A check says of a key what reading it would say, and leaves nothing behind."""
    state = tmp_path / "state"
    Seal.check_file(state / "key", {state})
    with pytest.raises(ConfigurationError, match="cannot be made") as excinfo:
        Seal.check_file(tmp_path / "no" / "key", {state})
    assert f"install -m 0600 -o USER /dev/stdin {tmp_path}/no/key" in excinfo.value.remedy
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "key"
    path.write_bytes(b"AAAA\n")
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="32 bytes"):
        Seal.check_file(path, ())
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Seal.check_file(path, ())


def test_a_key_of_the_documents_is_one(tmp_path: Path) -> None:
    """The command of the remedy, and of the pages, makes a key that is taken."""
    path = tmp_path / "key"
    with pytest.raises(ConfigurationError) as excinfo:
        Seal.from_file(tmp_path / "no" / "key")
    command = excinfo.value.remedy.partition(": ")[2]
    command = command.replace(f"{tmp_path}/no/key", str(path)).replace("USER", str(os.getuid()))
    subprocess.run(["sh", "-ec", command], check=True)
    ciphertext = Seal.from_file(path).close("text", "context")
    assert Seal.read(path).open(ciphertext, "context") == "text"
