"""Tests of the payload of simple signatures."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.signatures.simple_signing import read_payload
from tests.gpg import payload_of

DIGEST = "sha256:" + "a" * 64


def test_a_payload() -> None:
    """Reference and digest are returned; optional members are ignored."""
    assert read_payload(payload_of("a.b/c:1", DIGEST)) == ("a.b/c:1", DIGEST)
    assert read_payload(payload_of("a.b/c:1", DIGEST, optional={}))[1] == DIGEST


@pytest.mark.parametrize(
    "changes",
    [
        {"critical": ...},
        {"critical": []},
        {"optional": ...},
        {"optional": None},
        {"more": 1},
        {"critical__type": "cosign container image signature"},
        {"critical__type": None},
        {"critical__more": 1},
        {"critical__image": {}},
        {"critical__image": {"docker-manifest-digest": "sha256:abc"}},
        {"critical__image": {"docker-manifest-digest": 7}},
        {"critical__image": {"docker-manifest-digest": DIGEST, "more": 1}},
        {"critical__identity": ...},
        {"critical__identity": {"docker-reference": ""}},
        {"critical__identity": {"docker-reference": ["a.b/c:1"]}},
    ],
)
def test_invalid_payloads(changes: dict[str, Any]) -> None:
    """A payload with unknown, missing or wrong members is refused."""
    with pytest.raises(ValueError, match="payload"):
        read_payload(payload_of("a.b/c:1", DIGEST, **changes))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        payload_of("a.b/c:1", DIGEST).replace(b'"optional"', b'"optional": {}, "optional"'),
        payload_of("a.b/c:1", DIGEST).replace(b'"type"', b'"type": "x", "type"'),
    ],
)
def test_hostile_json(content: bytes) -> None:
    """A payload that is not an object, or has a member twice, is refused."""
    with pytest.raises(ValueError, match="payload"):
        read_payload(content)
