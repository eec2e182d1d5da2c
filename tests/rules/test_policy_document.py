"""Policies are read strictly, and each error names its place in the document."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shiftergw.errors import PolicyInvalid
from shiftergw.model.signatures import FulcioAuthority, GpgKeys, SigstoreKeys
from shiftergw.rules.policy import Policy, SignatureRequirement
from shiftergw.rules.policy_document import KEYS_LIMIT, parse_policy

ACCEPT = {"type": "insecureAcceptAnything"}
SIGNED_BY = {"type": "signedBy", "keyType": "GPGKeys", "keyData": "a2V5"}
SIGSTORE_SIGNED = {"type": "sigstoreSigned", "keyData": "a2V5"}
FULCIO = {"caData": "Y2E=", "oidcIssuer": "https://issuer", "subjectEmail": "a@example.org"}
FILES = {"/k1": b"one", "/k2": b"two", "/empty": b""}


def parse(document: Any) -> Policy:
    """Parse a policy whose key files are `FILES`."""
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_policy(content, read_key)


def read_key(path: str) -> bytes:
    """Return the content of a key file."""
    if path not in FILES:
        raise FileNotFoundError(2, "No such file or directory", path)
    return FILES[path]


def keys_of(requirement: Any) -> GpgKeys | SigstoreKeys:
    """Return the keys of one requirement."""
    (rule,) = parse({"default": [requirement]}).default
    assert isinstance(rule, SignatureRequirement)
    return rule.keys


def without(members: dict[str, Any], *names: str, **changes: Any) -> dict[str, Any]:
    """Return a copy without some members, and with others."""
    return {**{k: v for k, v in members.items() if k not in names}, **changes}


INVALID = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"\xff", "not valid JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"default": [{"type": "reject"}], "default": [{"type": "reject"}]}', "'default' twice"),
    (
        b'{"default": [{"type": "reject", "type": "insecureAcceptAnything"}]}',
        "member 'type' twice",
    ),
    ([], "the policy: it must be an object"),
    ({}, "'default' is missing"),
    ({"default": [ACCEPT], "x": 1}, "'x' is unknown"),
    ({"default": []}, "default: the requirements must be a list"),
    ({"default": ACCEPT}, "default: the requirements must be a list"),
    ({"default": [1]}, "default: it must be an object"),
    ({"default": [{}]}, "the requirement None is not supported"),
    ({"default": [{"type": ["reject"]}]}, "is not supported"),
    ({"default": [{"type": "signedBaseLayer"}]}, "'signedBaseLayer' is not supported"),
    ({"default": [{**ACCEPT, "keyPath": "/k1"}]}, "'keyPath' is unknown"),
    ({"default": [ACCEPT], "transports": []}, "transports: it must be an object"),
    ({"default": [ACCEPT], "transports": {"docker": []}}, "transport docker"),
    ({"default": [ACCEPT], "transports": {"docker": {"a.b": []}}}, "docker a.b"),
]

INVALID_REQUIREMENTS = [
    (without(SIGNED_BY, "keyType"), "'keyType' is missing"),
    (without(SIGNED_BY, keyType="X509Certificates"), "keyType must be GPGKeys"),
    (without(SIGNED_BY, "keyData"), "exactly one of keyPath"),
    (without(SIGNED_BY, keyPath="/k1"), "exactly one of keyPath"),
    (without(SIGNED_BY, keyDatas=["a2V5"]), "'keyDatas' is unknown"),
    (without(SIGNED_BY, keyData=""), "text that is not empty"),
    (without(SIGNED_BY, keyData="a2V5!"), "not base64"),
    (without(SIGNED_BY, keyData=7), "text that is not empty"),
    (without(SIGNED_BY, "keyData", keyPath="/absent"), "/absent cannot be read: No such file"),
    (without(SIGNED_BY, "keyData", keyPath="/empty"), "keyPath is empty"),
    (without(SIGNED_BY, "keyData", keyPath="k1"), "must be absolute"),
    (without(SIGNED_BY, "keyData", keyPaths=[]), f"list of 1 to {KEYS_LIMIT}"),
    (
        without(SIGNED_BY, "keyData", keyPaths=["/k1"] * (KEYS_LIMIT + 1)),
        f"list of 1 to {KEYS_LIMIT}",
    ),
    (without(SIGNED_BY, "keyData", keyPaths="/k1"), "list of 1 to"),
    (without(SIGNED_BY, signedIdentity="matchExact"), "signedIdentity"),
    (without(SIGNED_BY, signedIdentity={"type": "matchAll"}), "'matchAll' is unknown"),
    (without(SIGNED_BY, signedIdentity={"type": ["matchExact"]}), "is unknown"),
    (without(SIGNED_BY, signedIdentity={"type": "matchExact", "x": 1}), "'x' is unknown"),
    (without(SIGNED_BY, signedIdentity={"type": "exactReference"}), "'dockerReference' is missing"),
    (
        without(SIGNED_BY, signedIdentity={"type": "exactReference", "dockerReference": "a.b/c"}),
        "needs a tag",
    ),
    (
        without(
            SIGNED_BY, signedIdentity={"type": "exactRepository", "dockerRepository": "a.b/c:1"}
        ),
        "must not have a tag",
    ),
    (
        without(
            SIGNED_BY,
            signedIdentity={"type": "remapIdentity", "prefix": "a.b/c:1", "signedPrefix": "v.com"},
        ),
        "not a host, namespace",
    ),
    (without(SIGSTORE_SIGNED, "keyData"), "exactly one of keyPath"),
    (without(SIGSTORE_SIGNED, keyPath="/k1"), "exactly one of keyPath"),
    (without(SIGSTORE_SIGNED, pki={}), "'pki' is unknown"),
    (without(SIGSTORE_SIGNED, fulcio=FULCIO), "either a key or fulcio"),
    (without(SIGSTORE_SIGNED, "keyData", fulcio=FULCIO), "fulcio needs a rekorPublicKey"),
    (
        without(
            SIGSTORE_SIGNED, "keyData", fulcio=without(FULCIO, "caData"), rekorPublicKeyPath="/k1"
        ),
        "exactly one of caPath",
    ),
    (
        without(
            SIGSTORE_SIGNED,
            "keyData",
            fulcio=without(FULCIO, "subjectEmail"),
            rekorPublicKeyPath="/k1",
        ),
        "'subjectEmail' is missing",
    ),
    (
        without(
            SIGSTORE_SIGNED,
            "keyData",
            fulcio=without(FULCIO, oidcIssuer=""),
            rekorPublicKeyPath="/k1",
        ),
        "oidcIssuer",
    ),
    (
        without(SIGSTORE_SIGNED, rekorPublicKeyPath="/k1", rekorPublicKeyData="a2V5"),
        "exactly one of rekorPublicKeyPath",
    ),
]

INVALID_SCOPES = [
    ("docker", "a.b/*", "may only stand before a domain"),
    ("docker", "a*.b", "may only stand before a domain"),
    ("docker", "*.a.b/c", "may only stand before a domain"),
    ("docker", "a.b/", "docker reference"),
    ("docker", "a.b/C", "docker reference"),
    ("docker", "a b", "not a host"),
    ("docker", "a.b/c:t:u", "docker reference"),
    ("oci", "srv/images", "absolute path"),
    ("oci", "/", "absolute path"),
    ("dir", "/srv/../etc", "absolute path"),
]


@pytest.mark.parametrize(("document", "problem"), INVALID)
def test_invalid_documents(document: Any, problem: str) -> None:
    """The error for a document that is not a policy has the reason."""
    with pytest.raises(PolicyInvalid) as caught:
        parse(document)
    assert problem in caught.value.what


@pytest.mark.parametrize(("requirement", "problem"), INVALID_REQUIREMENTS)
def test_invalid_requirements(requirement: Any, problem: str) -> None:
    """A requirement with an unknown, wrong or missing member makes the policy invalid."""
    with pytest.raises(PolicyInvalid) as caught:
        parse({"default": [ACCEPT], "transports": {"docker": {"a.b/c": [requirement]}}})
    assert problem in caught.value.what
    assert "a.b/c" in caught.value.what


@pytest.mark.parametrize(("transport", "scope", "problem"), INVALID_SCOPES)
def test_invalid_scopes(transport: str, scope: str, problem: str) -> None:
    """A scope that no image can have makes the policy invalid."""
    with pytest.raises(PolicyInvalid) as caught:
        parse({"default": [ACCEPT], "transports": {transport: {scope: [ACCEPT]}}})
    assert problem in caught.value.what


def test_scopes_are_expanded() -> None:
    """The host of a scope is in lower case, and Docker Hub has one name; two of them collide."""
    names = ["*.Example.org", "INDEX.docker.io/library", "localhost:5000/a:T", "host"]
    policy = parse({"default": [ACCEPT], "transports": {"docker": {n: [ACCEPT] for n in names}}})
    assert list(policy.transports["docker"]) == [
        "*.example.org",
        "docker.io/library",
        "localhost:5000/a:T",
        "host",
    ]
    scopes = {"docker.io/library": [ACCEPT], "index.docker.io/library": [ACCEPT]}
    with pytest.raises(PolicyInvalid, match="another scope means"):
        parse({"default": [ACCEPT], "transports": {"docker": scopes}})


def test_sources_of_keys() -> None:
    """Keys come from files or from the policy itself."""
    assert keys_of(SIGNED_BY) == GpgKeys((b"key",))
    assert keys_of(without(SIGNED_BY, "keyData", keyPath="/k1")) == GpgKeys((b"one",))
    paths = without(SIGNED_BY, "keyData", keyPaths=["/k1", "/k2"])
    assert keys_of(paths) == GpgKeys((b"one", b"two"))
    assert keys_of(SIGSTORE_SIGNED) == SigstoreKeys((b"key",))
    datas = without(
        SIGSTORE_SIGNED, "keyData", keyDatas=["YQ==", "Yg=="], rekorPublicKeyPaths=["/k2"]
    )
    assert keys_of(datas) == SigstoreKeys((b"a", b"b"), None, (b"two",))
    fulcio = without(SIGSTORE_SIGNED, "keyData", fulcio=FULCIO, rekorPublicKeyDatas=["cg=="])
    authority = FulcioAuthority(b"ca", "https://issuer", "a@example.org")
    assert keys_of(fulcio) == SigstoreKeys((), authority, (b"r",))


def test_the_digest_covers_the_keys() -> None:
    """A policy has another digest when its text or one of its keys changes."""
    document = {"default": [without(SIGNED_BY, "keyData", keyPath="/k1")]}
    content = json.dumps(document).encode()
    digests = {
        parse_policy(content, read_key).digest,
        parse_policy(content, lambda _: b"another key").digest,
        parse_policy(content + b" ", read_key).digest,
    }
    assert len(digests) == 3
    assert parse_policy(content, read_key).digest in digests


def test_the_policy_of_the_distribution() -> None:
    """The policy that Debian installs is read."""
    content = b'{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker-daemon":'
    content += b' {"": [{"type": "insecureAcceptAnything"}]}}}'
    assert not parse(content).needs_gpg
