"""The gateway's keys: types, formats, passphrases, agents; no secret leaks."""

from __future__ import annotations

import functools
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_twisted

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.keys import read_key
from tests import children
from tests.delivery.conch_client import open_connection, refusal, run
from tests.parts import accepts, need
from tests.patience import patient
from tests.sshd import Sshd, make_key, public

PASSPHRASE = "the passphrase of a test"

KINDS = ["ed25519", "ecdsa:256", "ecdsa:384", "ecdsa:521", "rsa:2048", "rsa:4096"]
FORMATS = ["RFC4716", "PEM", "PKCS8"]  # as ssh-keygen calls them; the first is OpenSSH's own
PAIRS = [
    (kind, form)
    for kind in KINDS
    for form in FORMATS
    if kind != "ed25519" or form == "RFC4716"  # ssh-keygen writes no others
]


@functools.cache
def pair_of(kind: str) -> tuple[bytes, bytes]:
    """Return a private and public key of a type; large keys take seconds to generate."""
    name, _, bits = kind.partition(":")
    with TemporaryDirectory() as directory:
        key = make_key(Path(directory, "id"), name, *(["-b", bits] if bits else []))
        return key.read_bytes(), key.with_name("id.pub").read_bytes()


def make(path: Path, kind: str, form: str, passphrase: str = "") -> Path:
    """Write the key of a type in one of the formats of `ssh-keygen`."""
    private, public_half = pair_of(kind)
    path.touch(0o600)
    path.write_bytes(private)
    path.with_name(f"{path.name}.pub").write_bytes(public_half)
    argv = [need("ssh-keygen"), "-q", "-p", "-P", "", "-N", passphrase, "-m", form, "-f", str(path)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return path


def passphrase_file(path: Path, text: str = PASSPHRASE) -> Path:
    """Write a passphrase with a newline, as editors do."""
    path.write_text(f"{text}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Yield a server."""
    with Sshd() as server:
        yield server


@pytest.mark.parametrize("passphrase", ["", PASSPHRASE])
@pytest.mark.parametrize(("kind", "form"), PAIRS)
@pytest_twisted.ensureDeferred
async def test_types_and_formats(
    sshd: Sshd, threads: Threads, tmp_path: Path, kind: str, form: str, passphrase: str
) -> None:
    """Keys of each type and format log in, with and without a passphrase."""
    key = make(tmp_path / "id", kind, form, passphrase)
    sshd.authorized_keys.write_text(f"{public(key)}\n")
    file = passphrase_file(tmp_path / "passphrase") if passphrase else None
    async with open_connection(sshd, threads, key=key, passphrase_file=file) as connection:
        assert (await run(connection, "true"))[0] == 0


def test_ed25519_in_pkcs8(tmp_path: Path) -> None:
    """An Ed25519 key in PKCS#8, the format of other tools, is read."""
    path = tmp_path / "id"
    argv = [need("openssl"), "genpkey", "-algorithm", "ed25519", "-out", str(path)]
    subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)
    path.chmod(0o600)
    assert b"ssh-ed25519" in read_key(path, None).blob


@pytest.mark.parametrize("algorithm", ["rsa-sha2-256", "rsa-sha2-512"])
@pytest_twisted.ensureDeferred
async def test_rsa_signs_as_the_server_says(
    threads: Threads, tmp_path: Path, algorithm: str
) -> None:
    """An RSA key signs with the SHA-2 variant that the server accepts."""
    key = make(tmp_path / "id", "rsa:2048", "RFC4716")
    with Sshd(f"PubkeyAcceptedAlgorithms {algorithm}") as server:
        server.authorized_keys.write_text(f"{public(key)}\n")
        async with open_connection(server, threads, key=key) as connection:
            assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_rsa_never_signs_with_sha1(threads: Threads, tmp_path: Path) -> None:
    """A server that accepts only SHA-1 from RSA keys gets no signature."""
    key = make(tmp_path / "id", "rsa:2048", "RFC4716")
    with Sshd("PubkeyAcceptedAlgorithms ssh-rsa") as server:
        server.authorized_keys.write_text(f"{public(key)}\n")
        assert "does not accept" in (await refusal(server, threads, key=key)).what


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("passphrase", ["", "wrong"])
def test_passphrase_absent_or_wrong(tmp_path: Path, form: str, passphrase: str) -> None:
    """A missing and a wrong passphrase have errors of their own."""
    key = make(tmp_path / "id", "rsa:2048", form, PASSPHRASE)
    file = passphrase_file(tmp_path / "passphrase", "another") if passphrase else None
    with pytest.raises(DeliveryFailed) as excinfo:
        read_key(key, file)
    assert ("cannot be opened" if passphrase else "needs a passphrase") in excinfo.value.what
    assert "another" not in f"{excinfo.value} {excinfo.value.detail}"


def test_key_that_needs_no_passphrase(tmp_path: Path) -> None:
    """An unnecessary passphrase is ignored."""
    key = make(tmp_path / "id", "ed25519", "RFC4716")
    assert read_key(key, passphrase_file(tmp_path / "passphrase")).blob


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_secrets_that_others_can_read(tmp_path: Path, mode: int) -> None:
    """A key, or a passphrase, that others can read or change is not used."""
    key = make(tmp_path / "id", "ed25519", "RFC4716", PASSPHRASE)
    file = passphrase_file(tmp_path / "passphrase")
    assert read_key(key, file).blob
    for path in key, file:
        path.chmod(mode)
        with pytest.raises(DeliveryFailed, match="read by others"):
            read_key(key, file)
        path.chmod(0o600)


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", b"\xff" * 100_000],
)
def test_invalid_files(tmp_path: Path, content: bytes) -> None:
    """A file that is not a key raises an error."""
    path = tmp_path / "id"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(DeliveryFailed, match=r"cannot be (used|read)"):
        read_key(path, None)


@pytest.mark.parametrize("form", ["OpenSSH", "RFC4716", "PKCS8"])
@pytest.mark.parametrize("kind", ["rsa:2048", "ed25519", "ecdsa"])
def test_a_public_key(tmp_path: Path, kind: str, form: str) -> None:
    """A public key is recognized, whatever its mode, since chmod is not the remedy."""
    path = tmp_path / "id.pub"
    path.write_bytes(pair_of(kind)[1])
    if form != "OpenSSH" and not (kind == "ed25519" and form == "PKCS8"):
        argv = [need("ssh-keygen"), "-e", "-m", form, "-f", str(path)]
        path.write_bytes(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)
    for mode in (0o644, 0o600):
        path.chmod(mode)
        with pytest.raises(DeliveryFailed, match="is a public key") as excinfo:
            read_key(path, None)
        assert "the file without .pub" in excinfo.value.remedy


@pytest.mark.parametrize("algorithm", ["x25519", "EC"])
def test_keys_that_ssh_does_not_know(tmp_path: Path, algorithm: str) -> None:
    """Private keys of unsupported algorithms and curves are refused."""
    path = tmp_path / "id"
    options = ["-pkeyopt", "ec_paramgen_curve:secp256k1"] if algorithm == "EC" else []
    argv = [need("openssl"), "genpkey", "-algorithm", algorithm, *options, "-out", str(path)]
    subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)
    path.chmod(0o600)
    with pytest.raises(DeliveryFailed, match="cannot be used"):
        read_key(path, None)


def test_absent_files(tmp_path: Path) -> None:
    """A missing file and a directory raise errors whose details are for admins."""
    for path in tmp_path / "absent", tmp_path:
        with pytest.raises(DeliveryFailed, match="cannot be read") as excinfo:
            read_key(path, None)
        assert str(tmp_path) in excinfo.value.detail
        assert str(tmp_path) not in str(excinfo.value)


def test_repr_hides_the_key(tmp_path: Path) -> None:
    """The text of a key object contains no part of the key."""
    signer = read_key(make(tmp_path / "id", "rsa:2048", "PEM"), None)
    assert repr(signer) == "<key of a file>"


@contextmanager
def agent(*keys: Path) -> Iterator[dict[str, str]]:
    """Run an agent with these keys; yield the environment that names it."""
    directory = TemporaryDirectory(prefix="agent-")
    place = str(Path(directory.name) / "socket")
    process = children.start([need("ssh-agent"), "-D", "-a", place], stdout=subprocess.DEVNULL)
    try:
        while not accepts(Path(place)):
            assert process.poll() is None
            time.sleep(0.01)
        environment = {"SSH_AUTH_SOCK": place}
        for key in keys:
            argv = [need("ssh-add"), "-q", str(key)]
            subprocess.run(argv, check=True, env={**os.environ, **environment})
        yield environment
    finally:
        process.terminate()
        process.wait(patient(10))
        directory.cleanup()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa:256", "rsa:2048"])
@pytest_twisted.ensureDeferred
async def test_agent(sshd: Sshd, threads: Threads, tmp_path: Path, kind: str) -> None:
    """Without a key file, the keys of an agent are tried in order, RSA with SHA-2."""
    stranger = make_key(tmp_path / "stranger")
    key = make(tmp_path / "id", kind, "RFC4716")
    sshd.authorized_keys.write_text(f"{public(key)}\n")
    with agent(stranger, key) as environment:
        async with open_connection(sshd, threads, key=None, environment=environment) as connection:
            assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_agent_fails(sshd: Sshd, threads: Threads, tmp_path: Path) -> None:
    """A missing, a dead and an empty agent have errors of their own."""
    error = await refusal(sshd, threads, key=None)
    assert "no SSH key" in error.what
    environment = {"SSH_AUTH_SOCK": str(tmp_path / "absent")}
    error = await refusal(sshd, threads, key=None, environment=environment)
    assert "does not do" in error.what
    with agent() as environment:
        error = await refusal(sshd, threads, key=None, environment=environment)
    assert "holds no key" in error.what
