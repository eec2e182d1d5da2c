"""Files of a location are checked: content, matching key, and permissions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from shiftergw.errors import ConfigurationError
from shiftergw.model.requests import RegistryLogin
from shiftergw.sources.registry.local_files import LocationTls, mirror_login
from shiftergw.sources.registry.location import Location, Mirror
from tests.certificates import Authority


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Return files: an authority, a certificate with its key, the two apart, another key, text."""
    authority = Authority(tmp_path)
    own, second = authority.file("gateway"), authority.file("other")
    text = own.read_text()
    end = text.index("-----BEGIN CERTIFICATE")
    result = {"ca": authority.pem, "both": own, "other": second}
    for name, content in (("key", text[:end]), ("certificate", text[end:]), ("text", "hello")):
        result[name] = tmp_path / name
        result[name].write_text(content)
    result["locked"] = authority.file("gateway", password="secret")
    result["absent"] = tmp_path / "absent"
    for name in ("both", "other", "key", "certificate", "text", "locked"):
        result[name].chmod(0o640)
    return result


@pytest.mark.parametrize(
    ("certificate", "key"), [("both", None), ("certificate", "key"), ("both", "key")]
)
def test_a_client_certificate(files: dict[str, Path], certificate: str, key: str | None) -> None:
    """The key is in its own file, or in that of the certificate."""
    location = Location(
        "x",
        "https://x",
        files["ca"],
        client_certificate=files[certificate],
        client_key=None if key is None else files[key],
    )
    tls = LocationTls.of(location)
    assert tls.to_location is not tls.to_redirects
    plain = LocationTls.of(Location("x", "https://x", files["ca"]))
    assert plain.to_location is plain.to_redirects


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        ("absent", None, "The clientCertificate of the location 'x' cannot be read: "),
        ("text", None, "The clientCertificate of the location 'x' cannot be read as certificates"),
        ("certificate", None, "cannot be read as a private key in PEM without a passphrase"),
        ("certificate", "absent", "The clientKey of the location 'x' cannot be read: "),
        ("certificate", "text", "The clientKey of the location 'x' cannot be read as a private"),
        ("certificate", "locked", "in PEM without a passphrase"),
        ("certificate", "other", "is the key of another certificate than clientCertificate"),
    ],
)
def test_files_that_do_not_fit(
    files: dict[str, Path], certificate: str, key: str | None, words: str
) -> None:
    """The error names the key of the configuration and the file."""
    location = Location(
        "x",
        "https://x",
        client_certificate=files[certificate],
        client_key=None if key is None else files[key],
    )
    with pytest.raises(ConfigurationError, match=re.escape(words)) as caught:
        LocationTls.of(location)
    assert str(files[key or certificate]) in caught.value.what


@pytest.mark.parametrize("name", ["key", "both"])
def test_a_key_that_other_users_can_read(files: dict[str, Path], name: str) -> None:
    """A private key that other users can read is refused, and the remedy is a command."""
    files[name].chmod(0o644)
    location = Location("x", "https://x", client_certificate=files["both"], client_key=files["key"])
    if name == "both":
        location = Location("x", "https://x", client_certificate=files["both"])
    with pytest.raises(ConfigurationError, match="open to every user") as caught:
        LocationTls.of(location)
    assert f"chmod o= {files[name]}" in caught.value.remedy


def mirror_with(path: Path) -> Mirror:
    """Return a mirror with this login file."""
    return Mirror(Location("m.example", "https://m.example", is_mirror=True), path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_login(tmp_path: Path, end: str) -> None:
    """A login file has one line; colons and all letters are allowed in the password."""
    file = tmp_path / "login"
    file.write_text(f"gateway:pä:ss{end}", encoding="utf-8", newline="")
    file.chmod(0o600)
    assert mirror_login(mirror_with(file)) == RegistryLogin("gateway", "pä:ss")
    assert mirror_login(Mirror(Location("m", "https://m"))) is None


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda file: file.write_bytes(b"secret"), "cannot be read as one line user:password"),
        (lambda file: file.write_bytes(b"a:secret\nb:c\n"), "as one line user:password"),
        (lambda file: file.write_bytes(b"a:secret\xff"), "as one line user:password"),
        (lambda file: file.mkdir(mode=0o700), "The login of the mirror 'm.example' cannot be read"),
    ],
)
def test_files_without_a_login(tmp_path: Path, write: Callable[[Path], object], words: str) -> None:
    """The error does not quote the file."""
    file = tmp_path / "login"
    write(file)
    file.chmod(0o700)
    with pytest.raises(ConfigurationError, match=re.escape(words)) as caught:
        mirror_login(mirror_with(file))
    assert "secret" not in f"{caught.value}{caught.value.__cause__}"
