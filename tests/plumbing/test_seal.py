"""Stored logins are encrypted with a key file."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from base64 import b64encode
from contextlib import suppress
from pathlib import Path

import pytest

from shiftergw.errors import ConfigurationError, GatewayError
from shiftergw.plumbing.seal import Seal
from tests.parts import small_disk


def test_encrypt_and_decrypt(tmp_path: Path) -> None:
    """Another process with the key file can decrypt the text, which is otherwise unreadable."""
    path = tmp_path / "key"
    ciphertext = Seal.from_file(path).close("user:päss", "record 1")
    assert "user" not in ciphertext
    assert b"user" not in base64.b64decode(ciphertext)
    assert Seal.from_file(path).open(ciphertext, "record 1") == "user:päss"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_fingerprints() -> None:
    """Fingerprints depend on text, context and key, and do not reveal the text."""
    seal = Seal(bytes(32))
    fingerprint = seal.fingerprint("alice:secret", "login")
    assert fingerprint == Seal(bytes(32)).fingerprint("alice:secret", "login")
    digests = {
        seal.fingerprint("alice:secreu", "login"),
        seal.fingerprint("alice:secret", "logim"),
        Seal(b"k" * 32).fingerprint("alice:secret", "login"),
        fingerprint,
    }
    assert len(digests) == 4
    assert all(len(digest) == 32 and "alice" not in digest for digest in digests)


def test_sealing_twice_differs() -> None:
    """Equal texts have different ciphertexts, which hides equal passwords."""
    seal = Seal(bytes(32))
    assert seal.close("text", "context") != seal.close("text", "context")


@pytest.mark.parametrize(
    "ciphertext", ["", "AAAA", "no base64!", base64.b64encode(bytes(60)).decode()]
)
def test_damaged_text_is_refused(ciphertext: str) -> None:
    """Invalid ciphertext raises an error with a remedy."""
    with pytest.raises(GatewayError, match="SecretKeyFile"):
        Seal(bytes(32)).open(ciphertext, "context")


def test_another_key_or_context_is_refused() -> None:
    """A ciphertext can be decrypted only with its own key and context."""
    ciphertext = Seal(bytes(32)).close("text", "record 1")
    with pytest.raises(GatewayError):
        Seal(bytes(32)).open(ciphertext, "record 2")
    with pytest.raises(GatewayError):
        Seal(b"x" * 32).open(ciphertext, "record 1")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """A key file must not be readable for other users."""
    path = tmp_path / "key"
    Seal.from_file(path)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Seal.from_file(path)


@pytest.mark.parametrize(
    "content", [b"", b"AAAA\n", b"A", bytes(range(200)), b"\xff" + b64encode(bytes(32))]
)
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """A key file must hold 32 bytes in base64."""
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="32 bytes"):
        Seal.from_file(path)


def test_a_key_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A missing directory raises an error that names it."""
    with pytest.raises(ConfigurationError, match="No such file"):
        Seal.from_file(tmp_path / "no" / "key")


def test_a_key_without_an_end_is_refused(tmp_path: Path) -> None:
    """A named pipe or a device as the key file neither blocks nor exhausts the memory."""
    pipe, device = tmp_path / "pipe", tmp_path / "device"
    os.mkfifo(pipe, 0o600)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        with pytest.raises(ConfigurationError, match="cannot be read: Not a regular file"):
            Seal.from_file(path)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """The remedy for a full disk is room, not a manual key."""
    with small_disk(tmp_path / "state", "size=64k"):
        with suppress(OSError):
            (tmp_path / "state" / "rest").write_bytes(bytes(1 << 20))
        with pytest.raises(ConfigurationError, match="No space left") as excinfo:
            Seal.from_file(tmp_path / "state" / "secret.key")
        assert excinfo.value.remedy == "Make room on its file system."


def test_concurrent_starts_share_one_key(tmp_path: Path) -> None:
    """Processes that start together never read a partial key, and all get the same key."""
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
    """`check_file` raises the errors of `from_file` and creates nothing."""
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


def test_the_command_of_the_remedy_makes_a_key(tmp_path: Path) -> None:
    """The command in the remedy and in the documents makes a valid key."""
    path = tmp_path / "key"
    with pytest.raises(ConfigurationError) as excinfo:
        Seal.from_file(tmp_path / "no" / "key")
    command = excinfo.value.remedy.partition(": ")[2]
    command = command.replace(f"{tmp_path}/no/key", str(path)).replace("USER", str(os.getuid()))
    subprocess.run(["sh", "-ec", command], check=True)
    ciphertext = Seal.from_file(path).close("text", "context")
    assert Seal.read(path).open(ciphertext, "context") == "text"
