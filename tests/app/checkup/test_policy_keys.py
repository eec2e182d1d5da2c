"""`shiftergw check` warns before the keys of a policy expire, and names those that have."""

from __future__ import annotations

import datetime as dt
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.app.checkup.finding import Finding, Level
from shiftergw.app.checkup.policy_keys import PolicyKeys
from shiftergw.job.policy import read_policy
from tests.gpg import PAST, GpgHome
from tests.parts import need
from tests.signatures.signers import (
    EMAIL,
    ISSUER,
    NOW,
    CertificateIssuer,
    RekorLog,
    new_key,
    pem,
    public_pem,
)

DAY = 24 * 60
"""Minutes."""

REJECT = ({"type": "reject"},)


class Keyrings:
    """Keyrings of keys that are valid, expire soon, have expired, or were revoked."""

    def __init__(self, home: GpgHome) -> None:
        """Make the keys."""
        old = ("--faked-system-time", PAST)
        self.fingerprints = {
            "good": home.make_key("good"),
            "soon": home.make_key("soon", validity="5d"),
            "expired": home.make_key("expired", *old, validity="1d"),
            "revoked": home.make_key("revoked"),
            "parent": home.make_key("parent"),
        }
        home.gpg("--quick-add-key", self.fingerprints["parent"], "ed25519", "sign", "3d")
        home.revoke(self.fingerprints["revoked"])
        self.keyrings = {name: home.export(key) for name, key in self.fingerprints.items()}
        self.keyrings["armored"] = home.export(self.fingerprints["good"], armor=True)
        self.keyrings["keybox"] = (home.path / "pubring.kbx").read_bytes()


@pytest.fixture(scope="module")
def keyrings() -> Iterator[Keyrings]:
    """Return keyrings for all tests of this module."""
    with GpgHome() as home:
        yield Keyrings(home)


def encode(content: bytes) -> str:
    """Return the data of a key as policies have it."""
    return b64encode(content).decode()


def signed_by(keyring: bytes) -> dict[str, Any]:
    """Return a requirement of a signature by a key of this keyring."""
    return {"type": "signedBy", "keyType": "GPGKeys", "keyData": encode(keyring)}


def keyless(authority: bytes) -> dict[str, Any]:
    """Return a requirement of a signature by a certificate of this authority."""
    return {
        "type": "sigstoreSigned",
        "fulcio": {"caData": encode(authority), "oidcIssuer": ISSUER, "subjectEmail": EMAIL},
        "rekorPublicKeyData": encode(RekorLog().pem),
        "signedIdentity": {"type": "matchRepository"},
    }


async def findings_of(root: Path, *requirements: Any, **scopes: Any) -> list[Finding]:
    """Return the findings about the keys of a policy; `scopes` are further requirements."""
    table = {f"reg.example.org/{name}": [requirement] for name, requirement in scopes.items()}
    document = {"default": list(requirements), "transports": {"docker": table}}
    (root / "policy.json").write_text(json.dumps(document))
    policy = read_policy(root / "policy.json")
    return await PolicyKeys("a policy", policy, reactor).findings()


def root_of(days: int) -> bytes:
    """Return the certificate of an authority that expires in `days` days."""
    now = int(dt.datetime.now(dt.UTC).timestamp())
    minutes = (now - NOW) // 60 + days * DAY
    return pem(CertificateIssuer({"minutes": minutes}).root)


@pytest_twisted.ensureDeferred
async def test_a_policy_without_keys(tmp_path: Path) -> None:
    """A policy without keys has no findings."""
    assert await findings_of(tmp_path, {"type": "reject"}) == []


@pytest.mark.parametrize("name", ["good", "armored", "parent"])
@pytest_twisted.ensureDeferred
async def test_a_key_that_does_not_expire(keyrings: Keyrings, tmp_path: Path, name: str) -> None:
    """Of several subkeys for signatures the one that is valid longest counts."""
    (finding,) = await findings_of(tmp_path, signed_by(keyrings.keyrings[name]))
    assert finding == Finding("keys of a policy", Level.OK, "none of them expires")


@pytest.mark.parametrize(
    ("name", "level", "words"),
    [
        ("soon", Level.WARNING, "expires on 20"),
        ("expired", Level.FAILURE, "expired on 2020-01-02"),
        ("revoked", Level.FAILURE, "was revoked, or is not for signatures"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_key_that_does_not_count(
    keyrings: Keyrings, tmp_path: Path, name: str, level: Level, words: str
) -> None:
    """An invalid key is a failure, as it accepts no image; one that expires soon is a warning."""
    (finding,) = await findings_of(tmp_path, *REJECT, app=signed_by(keyrings.keyrings[name]))
    assert finding.level is level
    assert finding.text.startswith(f"the key {keyrings.fingerprints[name]} {words}")
    assert finding.text.endswith(" (docker reg.example.org/app)")
    assert finding.remedy


@pytest_twisted.ensureDeferred
async def test_another_key_still_counts(keyrings: Keyrings, tmp_path: Path) -> None:
    """An expired key beside a valid one is a warning, once for all scopes; a few are named."""
    pair = signed_by(keyrings.keyrings["expired"] + keyrings.keyrings["good"])
    scopes = {f"app{number}": pair for number in range(5)}
    (finding,) = await findings_of(tmp_path, *REJECT, **scopes)
    assert finding.level is Level.WARNING
    names = [f"docker reg.example.org/app{number}" for number in range(3)]
    assert finding.text.endswith(f" ({', '.join(names)} and 2 more)")


@pytest_twisted.ensureDeferred
async def test_all_keys_of_a_keybox(keyrings: Keyrings, tmp_path: Path) -> None:
    """The keyring of a home directory of GnuPG is read, too."""
    findings = await findings_of(tmp_path, signed_by(keyrings.keyrings["keybox"]))
    names = {
        name
        for name in keyrings.fingerprints
        for f in findings
        if keyrings.fingerprints[name] in f.text
    }
    assert names == {"soon", "expired", "revoked"}
    assert {finding.level for finding in findings} == {Level.WARNING}


@pytest.mark.parametrize(
    ("days", "level", "words"),
    [
        (3650, Level.OK, "the next one expires on "),
        (10, Level.WARNING, "the certificate of the authority CN=root expires on "),
        (-1, Level.FAILURE, "the certificate of the authority CN=root expired on "),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_certificate_authority(tmp_path: Path, days: int, level: Level, words: str) -> None:
    """The root of a keyless requirement is judged like a key."""
    (finding,) = await findings_of(tmp_path, keyless(root_of(days)))
    assert finding.level is level
    assert finding.text.startswith(words)


@pytest_twisted.ensureDeferred
async def test_public_keys_do_not_expire(tmp_path: Path) -> None:
    """A key of cosign has no dates."""
    requirement = {"type": "sigstoreSigned", "keyData": encode(public_pem(new_key()))}
    (finding,) = await findings_of(tmp_path, requirement)
    assert finding.text == "none of them expires"


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        (signed_by(b"key"), "a keyring cannot be used: it is neither an OpenPGP keyring nor"),
        ({"type": "sigstoreSigned", "keyData": "a2V5"}, "it is not a public key in PEM"),
        (keyless(b"root"), "the certificate authority: it has no usable certificates"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_keys_that_cannot_be_used(tmp_path: Path, requirement: Any, words: str) -> None:
    """Every image of the scope would be refused, so that is a failure."""
    need("gpg")
    (finding,) = await findings_of(tmp_path, requirement)
    assert finding.level is Level.FAILURE
    assert words in finding.text
    assert finding.text.endswith(" (default)")


@pytest_twisted.ensureDeferred
async def test_a_keyring_that_gpg_cannot_list(tmp_path: Path) -> None:
    """A keyring that gpg cannot list is a warning, because `gpgv` decides."""
    need("gpg")
    (finding,) = await findings_of(tmp_path, signed_by(b"\x99\0junk"))
    assert (finding.level, finding.text[:29]) == (Level.WARNING, "a keyring cannot be listed: g")


@pytest_twisted.ensureDeferred
async def test_without_gpg(
    keyrings: Keyrings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The absence of gpg is no fault, because only the dates of OpenPGP keys need it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = await findings_of(tmp_path, signed_by(keyrings.keyrings["expired"]))
    assert finding.level is Level.OK
    assert "gpg is not there" in finding.text
