"""Known hosts trust exactly the keys that OpenSSH would trust, and no key is added."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shiftergw.errors import DeliveryFailed
from shiftergw.ssh.known_hosts import KnownHosts, fingerprint
from tests.parts import need


def make_key(directory: Path, kind: str = "ed25519", name: str = "host", bits: str = "") -> str:
    """Return `TYPE BASE64` of a new key."""
    path = directory / name
    options = ["-b", bits] if bits else []
    argv = [need("ssh-keygen"), "-q", "-t", kind, *options, "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(argv, check=True)
    return path.with_suffix(".pub").read_text().strip()


def blob(public: str) -> bytes:
    """Return the bytes of `TYPE BASE64`."""
    return base64.b64decode(public.split()[1])


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a public key."""
    return make_key(tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="module")
def second_key(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return another public key of the same type."""
    return make_key(tmp_path_factory.mktemp("other"))


def hosts(*lines: str) -> KnownHosts:
    """Return known hosts of these lines."""
    return KnownHosts("\n".join(lines), "the test's list")


def refusal(call: Callable[[], object]) -> DeliveryFailed:
    """Return the error that a call raises."""
    with pytest.raises(DeliveryFailed) as excinfo:
        call()
    return excinfo.value


@pytest.mark.parametrize(
    ("names", "host", "port"),
    [
        ("h.example", "h.example", 22),
        ("h.example", "H.Example", 22),
        ("H.EXAMPLE", "h.example", 22),
        ("other,h.example,third", "h.example", 22),
        ("*.example", "h.example", 22),
        ("?.example", "h.example", 22),
        ("*.example,!x.example", "h.example", 22),
        ("[h.example]:2222", "h.example", 2222),
        ("[*.example]:2222", "h.example", 2222),
        ("192.0.2.*", "192.0.2.7", 22),
    ],
)
def test_names_that_match(key: str, names: str, host: str, port: int) -> None:
    """A line applies to the hosts that its names and patterns match."""
    hosts(f"{names} {key} a comment").check(host, port, blob(key))


@pytest.mark.parametrize(
    ("names", "host", "port"),
    [
        ("h.example", "i.example", 22),
        ("h.example", "h.example", 2222),
        ("[h.example]:2222", "h.example", 22),
        ("*.example,!h.example", "h.example", 22),
        ("!h.example,*.example", "h.example", 22),
        ("!h.example", "i.example", 22),
        ("[hi].example", "h.example", 22),
        ("h.example.", "h.example", 22),
        ("|1|not|base64!", "h.example", 22),
        ("|2|AAAA|AAAA", "h.example", 22),
    ],
)
def test_names_that_do_not_match(key: str, names: str, host: str, port: int) -> None:
    """A line does not apply to other hosts, other ports, and excluded names."""
    error = refusal(lambda: hosts(f"{names} {key}").check(host, port, blob(key)))
    assert "is not known" in error.what


@pytest.mark.parametrize(("name", "port"), [("h.example", 22), ("[h.example]:2222", 2222)])
def test_hashed_names(tmp_path: Path, key: str, name: str, port: int) -> None:
    """Names hashed by `ssh-keygen -H` match, and no other names do."""
    path = tmp_path / "known_hosts"
    path.write_text(f"{name} {key}\n")
    subprocess.run([need("ssh-keygen"), "-q", "-H", "-f", str(path)], check=True)
    assert "h.example" not in path.read_text()
    known_hosts = KnownHosts.read([path], must_exist=True)
    known_hosts.check("h.example", port, blob(key))
    assert "is not known" in refusal(lambda: known_hosts.check("i.example", port, blob(key))).what


def test_several_keys(key: str, second_key: str) -> None:
    """A host may have several keys, also of one type."""
    known_hosts = hosts(f"h {key}", "# a comment", "", f"h {second_key}")
    known_hosts.check("h", 22, blob(key))
    known_hosts.check("h", 22, blob(second_key))


def test_unknown_and_changed_keys_have_different_errors(key: str, second_key: str) -> None:
    """An unknown host and a changed key have errors of their own, with fingerprints."""
    known_hosts = hosts(f"h {key}")
    unknown_error = refusal(lambda: known_hosts.check("i", 22, blob(second_key)))
    changed_error = refusal(lambda: known_hosts.check("h", 22, blob(second_key)))
    assert "is not known." in unknown_error.what
    assert "has changed" in changed_error.what
    assert fingerprint(blob(second_key)) in unknown_error.detail
    assert fingerprint(blob(second_key)) in changed_error.detail
    assert fingerprint(blob(key)) in changed_error.detail
    for error in unknown_error, changed_error:
        assert "`shiftergw ssh-trust SYSTEM` shows its fingerprint" in error.remedy


def test_key_of_another_type(tmp_path: Path, key: str) -> None:
    """A known host that shows a key of another type has changed."""
    rsa = make_key(tmp_path, "rsa", bits="2048")
    assert "has changed" in refusal(lambda: hosts(f"h {key}").check("h", 22, blob(rsa))).what


def test_fingerprint(tmp_path: Path) -> None:
    """The fingerprint equals that of `ssh-keygen -l`."""
    public = make_key(tmp_path)
    argv = [need("ssh-keygen"), "-l", "-f", str(tmp_path / "host.pub")]
    output = subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout.decode()
    assert output.split()[1] == fingerprint(blob(public))


def test_revoked(key: str, second_key: str) -> None:
    """A revoked key is refused even if it is known; other keys of the host are accepted."""
    known_hosts = hosts(f"h {key}", f"@revoked * {key}", f"h {second_key}")
    assert "revoked" in refusal(lambda: known_hosts.check("h", 22, blob(key))).what
    known_hosts.check("h", 22, blob(second_key))


def test_revocation_that_cannot_be_read(key: str) -> None:
    """An invalid line that revokes a key raises an error."""
    error = refusal(lambda: hosts(f"h {key}", "@revoked * ssh-ed25519 !!!"))
    assert "cannot be understood" in error.what
    assert error.detail == "the test's list, line 2: @revoked * ssh-ed25519 !!!"


def test_certificate_authority(key: str, second_key: str) -> None:
    """A certificate authority makes no key known; the error names the remedy."""
    known_hosts = hosts(f"@cert-authority h {key}")
    for shown_key in key, second_key:
        error = refusal(lambda shown_key=shown_key: known_hosts.check("h", 22, blob(shown_key)))  # type: ignore[misc]
        assert "certificate authority" in error.what
        assert "openssh" in error.remedy
    hosts(f"@cert-authority h {key}", f"h {second_key}").check("h", 22, blob(second_key))


@pytest.mark.parametrize(
    "line", ["h", "h ssh-ed25519", "h ssh-ed25519 !!!", "h ssh-ed25519 AAAA", "@new h {key}", "\0"]
)
def test_invalid_lines(key: str, line: str) -> None:
    """Invalid lines are ignored, and do not affect other lines."""
    known_hosts = hosts(line.format(key=key), f"i {key}")
    assert "is not known" in refusal(lambda: known_hosts.check("h", 22, blob(key))).what
    known_hosts.check("i", 22, blob(key))


def test_a_wrong_type(tmp_path: Path, key: str) -> None:
    """A line whose type differs from that of its key is ignored."""
    known_hosts = hosts(f"h ssh-rsa {key.split()[1]}")
    assert "is not known" in refusal(lambda: known_hosts.check("h", 22, blob(key))).what


def test_known_algorithms_come_first(tmp_path: Path) -> None:
    """Algorithms of known keys are offered first, and RSA with SHA-1 never."""
    rsa = make_key(tmp_path, "rsa", "rsa", "2048")
    ecdsa = make_key(tmp_path, "ecdsa", "ecdsa", "384")
    known_hosts = hosts(f"h {rsa}", f"i {ecdsa}")
    assert known_hosts.algorithms("h", 22)[:3] == [b"rsa-sha2-512", b"rsa-sha2-256", b"ssh-ed25519"]
    assert known_hosts.algorithms("i", 22)[:2] == [b"ecdsa-sha2-nistp384", b"ssh-ed25519"]
    assert known_hosts.algorithms("j", 22)[0] == b"ssh-ed25519"
    assert b"ssh-rsa" not in known_hosts.algorithms("h", 22)


def test_files(tmp_path: Path, key: str, second_key: str) -> None:
    """Several files form one list; default files may be absent, a configured file may not."""
    (tmp_path / "a").write_text(f"h {key}")
    (tmp_path / "b").write_text(f"h {second_key}")
    paths = [tmp_path / name for name in ("a", "absent", "b")]
    known_hosts = KnownHosts.read(paths, must_exist=False)
    known_hosts.check("h", 22, blob(key))
    known_hosts.check("h", 22, blob(second_key))
    error = refusal(lambda: KnownHosts.read(paths, must_exist=True))
    assert "cannot be read" in error.what
    assert "absent" in error.detail
    assert "absent" not in str(error)
    assert "ssh-trust" in error.remedy


def test_places_of_lines(tmp_path: Path, key: str, second_key: str) -> None:
    """Each line has its file and its line number, as in an editor."""
    (tmp_path / "a").write_text(f"# one\x0c\n\nh {key}")
    (tmp_path / "b").write_text(f"h {second_key}\n@revoked h {key}\n")
    known_hosts = KnownHosts.read([tmp_path / "a", tmp_path / "b"], must_exist=True)
    places = [f"{tmp_path}/a, line 3", f"{tmp_path}/b, line 1"]
    assert [line.place for line in known_hosts.keys("h", 22)] == places
    (revoking,) = known_hosts.revoking("h", 22, blob(key))
    assert revoking.place == f"{tmp_path}/b, line 2"
    assert known_hosts.revoking("h", 22, blob(second_key)) == []
