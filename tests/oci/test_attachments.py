"""Attachments and referrers are read as cosign writes them; other content is skipped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shiftergw.errors import ManifestInvalid
from shiftergw.model.images import Digest
from shiftergw.oci.attachments import (
    next_page_query,
    read_layers,
    read_referrers,
    signing_referrers,
)

ATTACHMENT = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGN = "https://sigstore.dev/cosign/sign/v1"


def digest(number: int) -> str:
    """Return a digest."""
    return f"sha256:{number:064x}"


def manifest(*layers: dict[str, Any]) -> bytes:
    """Return a manifest with these layers."""
    return json.dumps({"schemaVersion": 2, "layers": layers}).encode()


def referrer(number: int, kind: str, predicate: str = "") -> dict[str, Any]:
    """Return the descriptor of a referrer."""
    annotations = {"dev.sigstore.bundle.predicateType": predicate} if predicate else None
    return {"digest": digest(number), "artifactType": kind, "annotations": annotations}


def test_layers() -> None:
    """Layers with signatures are returned with their annotations, others are left out."""
    annotations = {
        "dev.cosignproject.cosign/signature": "c2ln",
        "dev.sigstore.cosign/certificate": "leaf",
        "dev.sigstore.cosign/chain": "chain",
    }
    content = manifest(
        {"mediaType": ATTACHMENT, "digest": digest(1), "annotations": annotations},
        {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(2)},
        {"mediaType": BUNDLE, "digest": digest(3)},
    )
    attachment, bundle = read_layers(content, "the tag x")
    assert (attachment.digest, bundle.digest) == (
        Digest.parse(digest(1)),
        Digest.parse(digest(3)),
    )
    signature = attachment.with_payload(b"payload")
    assert (signature.kind, signature.payload, signature.place) == (
        "cosign",
        b"payload",
        "the tag x",
    )
    assert (signature.signature, signature.certificate, signature.chain) == (
        b"c2ln",
        b"leaf",
        b"chain",
    )
    assert dict(signature.annotations) == annotations
    assert bundle.with_payload(b"{}").kind == "bundle"


def test_many_layers() -> None:
    """At most 64 layers of a manifest are read."""
    layers = [{"mediaType": ATTACHMENT, "digest": digest(number)} for number in range(200)]
    assert len(list(read_layers(manifest(*layers), ""))) == 64


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"<html>",
        b" " * (1 << 20) + b"{}",
        b'{"layers": {}}',
        b'{"layers": [1]}',
        manifest({"mediaType": ATTACHMENT, "digest": "sha256:../.."}),
        manifest({"mediaType": ATTACHMENT}),
        manifest({"mediaType": ATTACHMENT, "digest": digest(1), "annotations": ["a"]}),
        manifest({"mediaType": 1}),
    ],
)
def test_odd_manifests(content: bytes) -> None:
    """A malformed manifest raises `ManifestInvalid`."""
    with pytest.raises(ManifestInvalid):
        list(read_layers(content, ""))


def test_order_of_referrers() -> None:
    """Signatures come first, then possible ones; attestations and other artifacts are skipped.

    An entry that is malformed does not hide the others.
    """
    index = json.dumps(
        {
            "manifests": [
                referrer(1, "application/vnd.oci.empty.v1+json"),
                referrer(2, BUNDLE, "https://slsa.dev/provenance/v1"),
                referrer(3, BUNDLE),
                referrer(4, "application/vnd.example.sbom"),
                referrer(5, BUNDLE, SIGN),
                {"digest": "x", "artifactType": BUNDLE},
                {"digest": digest(9), "artifactType": 7},
                referrer(6, "application/vnd.dev.cosign.artifact.sig.v1+json"),
                referrer(5, BUNDLE, SIGN),
            ]
        }
    ).encode()
    order = [int(entry.hex, 16) for entry in signing_referrers(read_referrers(index))]
    assert order == [5, 3, 6, 1]


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b"{}", b'{"layers": []}', b'{"manifests": 1}', b'{"manifests": [1]}'],
)
def test_odd_lists(content: bytes) -> None:
    """An HTML page, or another document, is not a list of referrers."""
    with pytest.raises(ManifestInvalid):
        read_referrers(content)


@pytest.mark.parametrize(
    ("link", "query"),
    [
        ("", ""),
        ('</v2/a/referrers/x?last=b&n=5>; rel="next"', "?last=b&n=5"),
        ("<https://evil.example/steal?last=b>; rel=next", "?last=b"),
        ('</v2/a/x?last=b>; rel="prev"', ""),
        ('</v2/a/x>; rel="next"', ""),
        ('</v2/a/x?a b>; rel="next"', ""),
        ('</v2/a/x?a\r\nHost: b>; rel="next"', ""),
        ("</v2/a/x?" + "a" * 3000 + '>; rel="next"', ""),
        ("<[http://>; rel=next", ""),
    ],
)
def test_next_pages(link: str, query: str) -> None:
    """A link to the next page counts only as a plain query."""
    assert next_page_query(link) == query
