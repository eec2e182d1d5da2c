"""Documents that lead to the signatures of an image: attachments of cosign, and referrers.

The manifests, indexes and annotations are those of cosign's specifications ("Cosign Signature
Specification", "Cosign Bundle Specification") and of the distribution-spec 1.1. Malformed documents
raise `ManifestInvalid`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shiftergw.errors import BadRequest, ManifestInvalid
from shiftergw.model.images import Digest
from shiftergw.model.signatures import (
    SIGNATURE_PREDICATE,
    SIGNATURE_SIZE_LIMIT,
    SIGNATURES_LIMIT,
    SignatureBlob,
    SignatureKind,
)
from shiftergw.oci.members import member, members, read_object, texts

_ATTACHMENT_LAYER = "application/vnd.dev.cosign.simplesigning.v1+json"
_ATTACHMENT_ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
_BUNDLE_PREFIX = "application/vnd.dev.sigstore.bundle"
_GENERAL_TYPES = frozenset(
    {"", "application/vnd.oci.empty.v1+json", "application/vnd.oci.image.config.v1+json"}
)
"""Artifact types that clients write into fallback indexes for lack of a better one."""

_SIGNATURE = "dev.cosignproject.cosign/signature"
_CERTIFICATE = "dev.sigstore.cosign/certificate"
_CHAIN = "dev.sigstore.cosign/chain"
_PREDICATE = "dev.sigstore.bundle.predicateType"

_NEXT_LINK = re.compile(r"""<[^<>?]*\?([!-;=?-~]{1,2000})>[^,]*;\s*rel="?next\b""")


@dataclass(frozen=True, slots=True)
class AttachedLayer:
    """A layer of a manifest that holds signatures; `place` says where it was found."""

    kind: SignatureKind
    digest: Digest
    annotations: Mapping[str, str]
    place: str

    def with_payload(self, payload: bytes) -> SignatureBlob:
        """Return the signature whose payload is the content of the layer."""
        if self.kind == "bundle":
            return SignatureBlob("bundle", payload, place=self.place)
        signature, certificate, chain = (
            self.annotations.get(name, "").encode() for name in (_SIGNATURE, _CERTIFICATE, _CHAIN)
        )
        return SignatureBlob(
            "cosign", payload, signature, certificate, chain, self.annotations, self.place
        )


def read_layers(content: bytes, place: str) -> Iterable[AttachedLayer]:
    """Yield the layers of a manifest that hold signatures; raise `ManifestInvalid`."""
    document = read_object(content, SIGNATURE_SIZE_LIMIT, "manifest")
    for layer in members(document, "layers", dict)[:SIGNATURES_LIMIT]:
        media_type = member(layer, "mediaType", str)
        is_bundle = media_type.startswith(_BUNDLE_PREFIX)
        if is_bundle or media_type == _ATTACHMENT_LAYER:
            yield AttachedLayer(
                "bundle" if is_bundle else "cosign",
                _digest(layer),
                texts(layer, "annotations"),
                place,
            )


def read_referrers(content: bytes) -> list[dict[str, Any]]:
    """Return the descriptors of an index; raise `ManifestInvalid`."""
    document = read_object(content, SIGNATURE_SIZE_LIMIT, "list of referrers")
    if "manifests" not in document:
        raise ManifestInvalid("The list of referrers is not an index.")
    return list(members(document, "manifests", dict))


def signing_referrers(descriptors: Iterable[dict[str, Any]]) -> list[Digest]:
    """Return the digests of referrers that may hold signatures, the likeliest first.

    Attestations are left out where their annotations tell. Without annotations, and in indexes of
    old clients without a proper type, only the manifest tells.
    """
    ranks: dict[Digest, int] = {}
    for descriptor in descriptors:
        try:
            kind = member(descriptor, "artifactType", str)
            predicate = texts(descriptor, "annotations").get(_PREDICATE, "")
            digest = _digest(descriptor)
        except ManifestInvalid:
            continue
        if kind.startswith(_BUNDLE_PREFIX) and predicate in {"", SIGNATURE_PREDICATE}:
            rank = 1 if predicate else 2
        elif kind == _ATTACHMENT_ARTIFACT:
            rank = 2
        elif kind in _GENERAL_TYPES:
            rank = 3
        else:
            continue
        ranks.setdefault(digest, rank)
    return sorted(ranks, key=ranks.__getitem__)


def next_page_query(link: str) -> str:
    """Return the query of the next page that a `Link` field names (RFC 8288); "" for the last.

    Only the query is taken: requests stay at the path of the first page.
    """
    match = _NEXT_LINK.search(link)
    return f"?{match[1]}" if match else ""


def _digest(holder: dict[str, Any]) -> Digest:
    try:
        return Digest.parse(member(holder, "digest", str))
    except BadRequest as error:
        raise ManifestInvalid(
            f"The signatures of the image are named wrongly: {error.what}"
        ) from error
