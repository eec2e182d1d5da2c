"""Tests of the check of OpenPGP signatures, with real keys, `gpgv` and `skopeo`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from shiftergw.errors import ConfigurationError, ImageRefused
from shiftergw.model.images import Digest
from shiftergw.model.signatures import (
    SIGNATURE_SIZE_LIMIT,
    GpgKeys,
    RejectedSignature,
    SignatureBlob,
    SigstoreKeys,
    VerificationResult,
    VerifiedClaim,
)
from shiftergw.signatures.gpg import GpgVerifier
from tests.gpg import PAST, GpgHome, payload_of
from tests.parts import need

real: Any = reactor
REFERENCE = "reg.example.org/n/app:1"
DIGEST = "sha256:" + "a" * 64
PAYLOAD = payload_of(REFERENCE, DIGEST)


class Signers:
    """Keys of several kinds, with a keyring of each and its signature of `PAYLOAD`."""

    def __init__(self, home: GpgHome) -> None:
        """Make the keys; the revoked key signs before its revocation."""
        need("gpgv")
        self.home = home
        old = ("--faked-system-time", PAST)
        self.fingerprints = {name: home.make_key(name) for name in ("good", "second", "revoked")}
        self.fingerprints["expired"] = home.make_key("expired", *old, validity="1d")
        self.fingerprints["rsa"] = home.make_key("rsa", algorithm="rsa1024")
        self.messages = {
            name: home.sign(key, PAYLOAD, *(old if name == "expired" else ()))
            for name, key in self.fingerprints.items()
        }
        home.revoke(self.fingerprints["revoked"])
        self.keyrings = {name: home.export(key) for name, key in self.fingerprints.items()}

    def keys(self, *names: str) -> GpgKeys:
        """Return the keys of a requirement: one keyring for each name."""
        return GpgKeys(tuple(self.keyrings[name] for name in names))

    def sign(self, payload: bytes, *options: str, name: str = "good") -> bytes:
        """Return a message that one of the keys has signed."""
        return self.home.sign(self.fingerprints[name], payload, *options)


@pytest.fixture(scope="module")
def signers() -> Iterator[Signers]:
    """Return signers for all tests of this module."""
    with GpgHome() as home:
        yield Signers(home)


def verify(message: bytes, keys: Any) -> Deferred[VerificationResult]:
    """Verify a simple signature."""
    verifier = GpgVerifier(real, real)
    return Deferred.fromCoroutine(verifier.verify(SignatureBlob("simple", b"", message), keys))


@pytest_twisted.ensureDeferred
async def test_a_good_signature(signers: Signers) -> None:
    """A signature by a key of the requirement is the claim of that key."""
    claim = await verify(signers.messages["good"], signers.keys("good"))
    assert claim == VerifiedClaim(signers.fingerprints["good"], REFERENCE, DIGEST)


@pytest_twisted.ensureDeferred
async def test_any_key_of_any_keyring_counts(signers: Signers) -> None:
    """A requirement may have several keyrings, armored ones too, each with several keys."""
    pair = signers.keyrings["expired"] + signers.keyrings["second"]
    keyring = signers.home.export(signers.fingerprints["good"], armor=True)
    keys = GpgKeys((pair, keyring))
    for name in ("good", "second"):
        claim = await verify(signers.messages[name], keys)
        assert claim == VerifiedClaim(signers.fingerprints[name], REFERENCE, DIGEST)


@pytest_twisted.ensureDeferred
async def test_a_keybox(signers: Signers) -> None:
    """The keyring of a home directory of newer versions of GnuPG is read, too."""
    box = (signers.home.path / "pubring.kbx").read_bytes()
    claim = await verify(signers.messages["good"], GpgKeys((box,)))
    assert claim == VerifiedClaim(signers.fingerprints["good"], REFERENCE, DIGEST)


@pytest_twisted.ensureDeferred
async def test_a_signature_of_skopeo(signers: Signers, tmp_path: Path) -> None:
    """A signature of `skopeo standalone-sign` is accepted, for the digest of the manifest."""
    manifest = tmp_path / "manifest.json"
    content = b'{"schemaVersion": 2}'
    manifest.write_bytes(content)
    key = signers.fingerprints["good"]
    message = signers.home.sign_manifest(key, manifest, REFERENCE)
    claim = await verify(message, signers.keys("good"))
    assert claim == VerifiedClaim(key, REFERENCE, str(Digest.of(content)))


@pytest_twisted.ensureDeferred
async def test_a_subkey_signs_for_its_key(signers: Signers) -> None:
    """The identity is the fingerprint of the primary key."""
    home = signers.home
    key = home.make_key("parent")
    home.gpg("--quick-add-key", key, "ed25519", "sign", "never")
    listing = home.gpg("--with-colons", "--list-keys", key).decode().splitlines()
    subkey = [line.split(":")[9] for line in listing if line.startswith("fpr")][1]
    claim = await verify(home.sign(subkey, PAYLOAD), GpgKeys((home.export(key),)))
    assert claim == VerifiedClaim(key, REFERENCE, DIGEST)


@pytest.mark.parametrize(
    ("signer", "keyrings", "reason"),
    [
        ("good", ["second"], "it is signed by a key that the policy does not accept"),
        ("expired", ["expired"], "it is signed by a key that has expired"),
        ("expired", ["good", "expired"], "it is signed by a key that has expired"),
        ("revoked", ["revoked"], "it is signed by a key that was revoked"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_keys_that_do_not_count(
    signers: Signers, signer: str, keyrings: list[str], reason: str
) -> None:
    """Unknown, expired and revoked keys are named and refused, whatever gpgv's exit code."""
    rejection = await verify(signers.messages[signer], signers.keys(*keyrings))
    assert isinstance(rejection, RejectedSignature)
    assert signers.fingerprints[signer].endswith(rejection.identity)
    assert rejection.reason == f"{reason} ({rejection.identity})"


@pytest_twisted.ensureDeferred
async def test_an_expired_signature(signers: Signers) -> None:
    """A signature with an expiration in the past is refused."""
    home = signers.home
    key = home.make_key("old", "--faked-system-time", PAST)
    options = ["--faked-system-time", PAST, "--default-sig-expire", "1d"]
    rejection = await verify(home.sign(key, PAYLOAD, *options), GpgKeys((home.export(key),)))
    assert isinstance(rejection, RejectedSignature)
    assert rejection.reason.startswith("it has expired")


@pytest_twisted.ensureDeferred
async def test_a_weak_hash(signers: Signers) -> None:
    """A signature with SHA-1 is refused, although gpgv accepts it."""
    message = signers.sign(PAYLOAD, "--digest-algo", "SHA1", name="rsa")
    rejection = await verify(message, signers.keys("rsa"))
    assert isinstance(rejection, RejectedSignature)
    assert rejection.reason == "its hash algorithm is too weak"


def swap(message: bytes) -> bytes:
    """Return a message whose payload names another image."""
    result = message.replace(b"app:1", b"bad:1")
    assert result != message
    return result


PLAIN = ("--compress-algo", "none")

MESSAGES: dict[str, Callable[[Signers], bytes]] = {
    "nothing": lambda _: b"",
    "text": lambda _: b"not a signature",
    "payload alone": lambda _: PAYLOAD,
    "truncated": lambda signers: signers.messages["good"][:-20],
    "half": lambda signers: signers.messages["good"][: len(signers.messages["good"]) // 2],
    "changed payload": lambda signers: swap(signers.sign(PAYLOAD, *PLAIN)),
    "two messages": lambda signers: signers.sign(PAYLOAD, *PLAIN) * 2,
    "two signers": lambda signers: signers.sign(
        PAYLOAD, "--local-user", signers.fingerprints["second"]
    ),
    "payload before": lambda signers: (
        signers.home.gpg("--store", *PLAIN, content=PAYLOAD) + signers.sign(PAYLOAD, *PLAIN)
    ),
    "payload behind": lambda signers: (
        signers.sign(PAYLOAD, *PLAIN) + signers.home.gpg("--store", *PLAIN, content=PAYLOAD)
    ),
    "unsigned": lambda signers: signers.home.gpg("--store", content=PAYLOAD),
    "detached": lambda signers: signers.sign(PAYLOAD, "--detach-sign"),
    "text signature": lambda signers: signers.sign(PAYLOAD, "--textmode"),
    "clear text": lambda signers: signers.sign(PAYLOAD, "--clear-sign"),
    "public key": lambda signers: signers.keyrings["good"],
    "payload of another kind": lambda signers: signers.sign(b'{"x": 1}'),
    "payload with a wrong type": lambda signers: signers.sign(
        payload_of(REFERENCE, DIGEST, critical__type="x")
    ),
    "bomb": lambda signers: signers.sign(bytes(20 * SIGNATURE_SIZE_LIMIT)),
    "large": lambda signers: bytes(SIGNATURE_SIZE_LIMIT + 1),
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest_twisted.ensureDeferred
async def test_hostile_messages(signers: Signers, name: str) -> None:
    """Only one complete signature of one payload is accepted, although the key is right."""
    result = await verify(MESSAGES[name](signers), signers.keys("good", "second"))
    assert isinstance(result, RejectedSignature), name
    assert result.reason.isprintable()
    assert ("larger than" in result.reason) is (name in {"bomb", "large"})


@pytest_twisted.ensureDeferred
async def test_only_the_signed_payload_is_read(signers: Signers) -> None:
    """Bytes after the end of a compressed message, which gpgv ignores, are not read."""
    foreign = signers.home.gpg("--store", content=payload_of("a.b/bad:1", DIGEST))
    claim = await verify(signers.messages["good"] + foreign, signers.keys("good"))
    assert claim == VerifiedClaim(signers.fingerprints["good"], REFERENCE, DIGEST)


@pytest_twisted.ensureDeferred
async def test_keys_of_another_kind(signers: Signers) -> None:
    """Sigstore keys and sigstore signatures are refused by gpgv's verifier."""
    result = await verify(signers.messages["good"], SigstoreKeys((b"x",)))
    assert isinstance(result, RejectedSignature)
    verifier = GpgVerifier(real, real)
    blob = SignatureBlob("cosign", b"", signers.messages["good"])
    assert isinstance(await verifier.verify(blob, signers.keys("good")), RejectedSignature)


@pytest_twisted.ensureDeferred
async def test_an_unusable_keyring(signers: Signers) -> None:
    """A keyring that cannot be read is an error of the configuration, not of the image."""
    with pytest.raises(ConfigurationError, match="neither an OpenPGP keyring"):
        await verify(signers.messages["good"], GpgKeys((b"text",)))


@pytest_twisted.ensureDeferred
async def test_a_damaged_keyring_knows_no_key(signers: Signers) -> None:
    """With half a keyring the signature is not accepted."""
    keyring = signers.keyrings["good"]
    result = await verify(signers.messages["good"], GpgKeys((keyring[: len(keyring) // 2],)))
    assert isinstance(result, RejectedSignature)


@pytest_twisted.ensureDeferred
async def test_without_gpgv(signers: Signers, tmp_path: Path) -> None:
    """A missing or crashed program is not a missing signature: the image is refused."""
    absent = GpgVerifier(real, real, str(tmp_path / "gpgv"))
    with pytest.raises(ConfigurationError, match="gpgv cannot be started"):
        await absent.check_program()
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    blob = SignatureBlob("simple", b"", signers.messages["good"])
    for verifier in (absent, GpgVerifier(real, real, str(program))):
        with pytest.raises(ImageRefused, match="cannot be verified at the moment"):
            await verifier.verify(blob, signers.keys("good"))
    await GpgVerifier(real, real).check_program()


STATUS = {
    "PLAINTEXT": "62 1796003079 ",
    "NEWSIG": "",
    "GOODSIG": "62C9833CD729F666 a@example.org",
    "VALIDSIG": f"{'A' * 40} 2026-11-30 1796003079 0 4 0 22 8 00 {'B' * 40}",
}
"""The status lines of `gpgv` for a good signature."""


async def judge_status(signers: Signers, root: Path, lines: list[str]) -> VerificationResult:
    """Verify a signature by a program that prints these status lines, and exits with 0."""
    program, status, payload = (root / name for name in ("gpgv", "status", "payload"))
    status.write_text("".join(f"[GNUPG:] {line}\n" for line in lines))
    payload.write_bytes(PAYLOAD)
    program.write_text(f"#!/bin/sh\ncat {status} >&3\ncat {payload}\n")
    program.chmod(0o755)
    verifier = GpgVerifier(real, real, str(program))
    blob = SignatureBlob("simple", b"", signers.messages["good"])
    return await verifier.verify(blob, signers.keys("good"))


@pytest_twisted.ensureDeferred
async def test_complete_status_lines(signers: Signers, tmp_path: Path) -> None:
    """The last argument of VALIDSIG is the fingerprint of the primary key."""
    lines = [f"{word} {arguments}" for word, arguments in STATUS.items()]
    claim = await judge_status(signers, tmp_path, lines)
    assert claim == VerifiedClaim("B" * 40, REFERENCE, DIGEST)


@pytest.mark.parametrize(
    ("without", "replacement"),
    [
        (word, lines)
        for word in ("GOODSIG", "VALIDSIG", "PLAINTEXT")
        for lines in ([], [f"{word} {STATUS[word]}"] * 2)
    ]
    + [
        ("NEWSIG", [f"{word} {'C' * 16}"])
        for word in (
            *("BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "NO_PUBKEY", "NODATA"),
            *("UNEXPECTED", "BADARMOR", "FAILURE", "ERROR"),
        )
    ]
    + [
        ("VALIDSIG", ["VALIDSIG"]),
        ("VALIDSIG", [f"VALIDSIG {'A' * 40} 2026-11-30 1 0 4 0 22 8 00"]),
        ("VALIDSIG", [f"VALIDSIG {'A' * 40} 2026-11-30 1 0 4 0 22 8 00 a/b"]),
        ("VALIDSIG", [f"VALIDSIG {'A' * 40} 2026-11-30 1 0 4 0 22 2 00 {'B' * 40}"]),
        ("VALIDSIG", [f"VALIDSIG {'A' * 40} 2026-11-30 1 0 4 0 22 8 01 {'B' * 40}"]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_other_status_lines(
    signers: Signers, tmp_path: Path, without: str, replacement: list[str]
) -> None:
    """Missing, repeated, malformed or negative lines refuse the signature; the exit code is 0."""
    lines = [f"{word} {arguments}" for word, arguments in STATUS.items() if word != without]
    result = await judge_status(signers, tmp_path, [*lines, *replacement])
    assert isinstance(result, RejectedSignature)
    assert result.reason.isprintable()
