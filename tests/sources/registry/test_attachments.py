"""Signatures of an image are fetched from wherever cosign stores them, within limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted

from shiftergw.errors import (
    ImageNotFound,
    ManifestInvalid,
    RegistryDenied,
    RegistryUnavailable,
    RetryLater,
)
from shiftergw.model.images import Descriptor, Digest, ResolvedImage
from shiftergw.model.requests import RegistryLogin
from shiftergw.model.signatures import SignatureBlob, SignatureKind, VerifiedClaim
from shiftergw.signatures.sigstore import verify_sigstore
from tests.images import INDEX, MANIFEST, descriptor, make_image, make_index, tar_of
from tests.registries import Ask, FakeRegistry
from tests.signatures.signers import CosignSigner, compact, simple_signing, statement
from tests.sources.registry.network import SHORT, quiet, serving

IMAGE = make_image([tar_of({"a": b"a"})])
ATTACHMENT = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
EMPTY = descriptor(b"{}", "application/vnd.oci.empty.v1+json")
ALL_KINDS: frozenset[SignatureKind] = frozenset({"simple", "cosign", "bundle"})
SIGNER = CosignSigner()
DIGEST = str(IMAGE.digest)


class SigningRegistry(FakeRegistry):
    """A registry of signatures; with `has_referrers` it has the referrers API, in pages of two."""

    def __init__(self, *, has_referrers: bool = True) -> None:
        """Serve `IMAGE`, not signed yet."""
        super().__init__(IMAGE)
        self.has_referrers = has_referrers
        self.referrers: list[dict[str, Any]] = []

    def attach(self, *signatures: SignatureBlob, subject: Digest = IMAGE.digest) -> Digest:
        """Store attachments under the tag of the image."""
        layers = [
            descriptor(blob.payload, ATTACHMENT, annotations=dict(blob.annotations))
            for blob in signatures
        ]
        self.blobs.update({str(Digest.of(blob.payload)): blob.payload for blob in signatures})
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": EMPTY, "layers": layers}
        tag = f"{subject.algorithm}-{subject.hex}.sig"
        return self.add(json.dumps(document).encode(), MANIFEST, tag)

    def refer(self, bundle: bytes, kind: str = BUNDLE, **members: Any) -> Digest:
        """Store a bundle as a referrer of the image."""
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": kind,
            "config": EMPTY,
            "layers": [descriptor(bundle, BUNDLE)],
            "subject": descriptor(IMAGE.manifest, IMAGE.media_type),
        }
        self.blobs[str(Digest.of(bundle))] = bundle
        content = json.dumps(document).encode()
        self.referrers.append(descriptor(content, MANIFEST, artifactType=kind, **members))
        if not self.has_referrers:
            self.add(self.list_of(self.referrers), INDEX, DIGEST.replace(":", "-"))
        return self.add(content, MANIFEST)

    @staticmethod
    def list_of(descriptors: Sequence[Mapping[str, Any]]) -> bytes:
        """Return an index of referrers."""
        return json.dumps(
            {"schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors}
        ).encode()

    def respond(self, ask: Ask) -> None:
        path, _, query = ask.path.partition("?")
        if "/referrers/" not in path or not self.has_referrers:
            super().respond(ask)
            return
        start = int(query.removeprefix("start=") or 0)
        page = self.referrers[start : start + 2] if path.endswith(DIGEST) else []
        has_next_page = start + 2 < len(self.referrers) and path.endswith(DIGEST)
        link = {"Link": f'<{path}?start={start + 2}>; rel="next"'} if has_next_page else {}
        ask.answer(200, self.list_of(page), Content_Type=INDEX, **link)


def resolved_image(source: Digest = IMAGE.digest, *, private: bool = False) -> ResolvedImage:
    """Return the image as it was resolved."""
    blob = Descriptor(IMAGE.digest, 1)
    return ResolvedImage(IMAGE.digest, source, blob, (blob,), "test", "team/app", private)


async def fetch(
    registry: FakeRegistry,
    kinds: frozenset[SignatureKind] = ALL_KINDS,
    image: ResolvedImage | None = None,
    login: RegistryLogin | None = None,
    **options: Any,
) -> list[SignatureBlob]:
    """Return the signatures of the image that a client gets."""
    async with serving(registry, **options) as client:
        return await client.signatures(image or resolved_image(), kinds, login, quiet)


def paths(registry: FakeRegistry) -> list[str]:
    """Return the requests without the repository, digests shortened."""
    return [ask.path.removeprefix("/v2/team/app/")[:24] for ask in registry.requests]


@pytest_twisted.ensureDeferred
async def test_no_signatures() -> None:
    """An image without signatures has an empty list, after a request for each place."""
    registry = SigningRegistry(has_referrers=False)
    assert await fetch(registry) == []
    assert [ask.path.removeprefix("/v2/team/app/") for ask in registry.requests] == [
        f"manifests/sha256-{IMAGE.digest.hex}.sig",
        f"referrers/{DIGEST}",
        f"manifests/sha256-{IMAGE.digest.hex}",
    ]


@pytest_twisted.ensureDeferred
async def test_other_kinds() -> None:
    """No request is sent for kinds that are stored elsewhere, or not needed."""
    registry = SigningRegistry()
    registry.attach(SIGNER.attach())
    assert await fetch(registry, frozenset({"simple"})) == []
    assert registry.requests == []


@pytest_twisted.ensureDeferred
async def test_an_attachment() -> None:
    """Several signatures of one payload share a request, and can be verified as they come."""
    registry = SigningRegistry()
    payload = simple_signing(DIGEST)
    registry.attach(SIGNER.attach(payload), CosignSigner().attach(payload))
    first, second = await fetch(registry)
    assert "sha256-" in first.place
    assert first.payload == second.payload
    claim = verify_sigstore(first, SIGNER.keys(needs_log=True))
    assert isinstance(claim, VerifiedClaim)
    assert claim.manifest_digest == DIGEST
    assert len([path for path in paths(registry) if path.startswith("blobs/")]) == 1


@pytest.mark.parametrize("has_referrers", [True, False])
@pytest_twisted.ensureDeferred
async def test_bundles(has_referrers: bool) -> None:
    """Bundles are found by the referrers API in pages, or by the index under the fallback tag."""
    registry = SigningRegistry(has_referrers=has_referrers)
    attestation = {"dev.sigstore.bundle.predicateType": "https://slsa.dev/provenance/v1"}
    registry.refer(b"attestation", annotations=attestation)
    registry.refer(b"sbom", "application/vnd.example.sbom")
    registry.refer(compact(SIGNER.bundle(statement(DIGEST))))
    (blob,) = await fetch(registry)
    claim = verify_sigstore(blob, SIGNER.keys(needs_log=True))
    assert isinstance(claim, VerifiedClaim)
    assert claim.manifest_digest == DIGEST
    assert sum(path.startswith("referrers/") for path in paths(registry)) == 1 + has_referrers


@pytest_twisted.ensureDeferred
async def test_an_attachment_that_refers() -> None:
    """The experimental mode of cosign stores attachments as referrers."""
    registry = SigningRegistry()
    blob = SIGNER.attach(simple_signing(DIGEST))
    registry.attach(blob, subject=Digest.of(b"elsewhere"))
    content, _ = registry.documents[registry.tags[f"sha256-{Digest.of(b'elsewhere').hex}.sig"]]
    kind = "application/vnd.dev.cosign.artifact.sig.v1+json"
    registry.referrers.append(descriptor(content, MANIFEST, artifactType=kind))
    (signature,) = await fetch(registry, frozenset({"cosign"}))
    assert isinstance(verify_sigstore(signature, SIGNER.keys()), VerifiedClaim)
    assert await fetch(SigningRegistry(), frozenset({"bundle"})) == []


@pytest_twisted.ensureDeferred
async def test_signatures_of_the_index() -> None:
    """The signatures of the index that led to the manifest are fetched, too."""
    registry = SigningRegistry()
    index = Digest.of(make_index([IMAGE]))
    registry.attach(SIGNER.attach(simple_signing(str(index))), subject=index)
    (signature,) = await fetch(registry, image=resolved_image(index))
    claim = verify_sigstore(signature, SIGNER.keys())
    assert isinstance(claim, VerifiedClaim)
    assert claim.manifest_digest == str(index)


@pytest_twisted.ensureDeferred
async def test_a_private_image() -> None:
    """Signatures of a private image are fetched with the user's login, others without."""
    registry = SigningRegistry()
    registry.attach(SIGNER.attach())

    def challenge(ask: Ask) -> object:
        if ask.header("Authorization") is None:
            return ask.answer(401, WWW_Authenticate='Basic realm="x"')
        return None

    registry.misbehave = challenge
    login = RegistryLogin("alice", "secret")
    assert len(await fetch(registry, image=resolved_image(private=True), login=login)) == 1
    with pytest.raises(RegistryDenied):
        await fetch(registry, login=login)


# Registries without referrers, and hostile ones.


def odd_referrers(status: int, content: bytes = b"", **fields: str) -> Any:
    """Return the behavior of a registry that answers the referrers API oddly."""

    def misbehave(ask: Ask) -> object:
        if "/referrers/" in ask.path:
            return ask.answer(status, content, **fields)
        return None

    return misbehave


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (400, b""),
        (401, b""),
        (403, b""),
        (404, b"404 page not found"),
        (405, b""),
        (406, b""),
        (501, b""),
        (200, b"<html>Welcome</html>"),
        (200, b"{}" * 5),
    ],
)
@pytest_twisted.ensureDeferred
async def test_registries_without_referrers(status: int, content: bytes) -> None:
    """The fallback tag is read after any answer of a registry without the API."""
    registry = SigningRegistry(has_referrers=False)
    registry.refer(b"bundle")
    registry.misbehave = odd_referrers(status, content)
    (blob,) = await fetch(registry)
    assert blob.payload == b"bundle"


@pytest_twisted.ensureDeferred
async def test_a_refusal_counts_if_nothing_else_is_there() -> None:
    """A registry that refuses the list does not count as one without signatures."""
    registry = SigningRegistry(has_referrers=False)
    registry.misbehave = odd_referrers(403)
    with pytest.raises(RegistryDenied):
        await fetch(registry)


@pytest.mark.parametrize(("status", "error"), [(503, RetryLater), (429, RetryLater)])
@pytest_twisted.ensureDeferred
async def test_an_unavailable_list(status: int, error: type[Exception]) -> None:
    """A registry that is unavailable does not count as one without signatures."""
    registry = SigningRegistry()
    registry.misbehave = odd_referrers(status)
    with pytest.raises(error):
        await fetch(registry)


@pytest_twisted.ensureDeferred
async def test_a_long_list() -> None:
    """A list above the limit does not count as one without signatures."""
    registry = SigningRegistry(has_referrers=False)
    registry.misbehave = odd_referrers(200, b'{"manifests": [' + b" " * (1 << 20) + b"]}")
    with pytest.raises(RegistryUnavailable, match="more than 1 MiB"):
        await fetch(registry)


@pytest_twisted.ensureDeferred
async def test_endless_pages() -> None:
    """Only the first pages of an endless list of referrers are read."""
    registry = SigningRegistry()
    link = f'</v2/team/app/referrers/{DIGEST}?start=0>; rel="next"'
    empty = SigningRegistry.list_of([])
    registry.misbehave = odd_referrers(200, empty, Content_Type=INDEX, Link=link)
    assert await fetch(registry) == []
    assert sum(path.startswith("referrers/") for path in paths(registry)) == 4


@pytest_twisted.ensureDeferred
async def test_unreadable_attachments() -> None:
    """An invalid or too large attachment is an error that names it; such a referrer is skipped."""
    registry = SigningRegistry()
    tag = f"sha256-{IMAGE.digest.hex}.sig"
    registry.add(b'{"layers": 7}', MANIFEST, tag)
    with pytest.raises(ManifestInvalid, match="unreadable signatures for the image, under the tag"):
        await fetch(registry)
    registry.add(b" " * (1 << 20) + b"{}", MANIFEST, tag)
    with pytest.raises(ManifestInvalid, match="unreadable signatures") as caught:
        await fetch(registry)
    assert "more than 1 MiB" in caught.value.detail
    registry.add(b"{}", MANIFEST, tag)
    registry.add(b'{"manifests": 7}', INDEX, tag.removesuffix(".sig"))
    registry.has_referrers = False
    with pytest.raises(ManifestInvalid, match=f"under the tag sha256-{IMAGE.digest.hex}\\."):
        await fetch(registry)
    registry.has_referrers = True
    registry.referrers.append(descriptor(registry_junk := b"[]", MANIFEST, artifactType=BUNDLE))
    registry.referrers.append(descriptor(b"missing", MANIFEST, artifactType=BUNDLE))
    registry.add(registry_junk, MANIFEST)
    registry.refer(b"bundle")
    assert [blob.payload for blob in await fetch(registry)] == [b"bundle"]


@pytest_twisted.ensureDeferred
async def test_large_and_missing_payloads() -> None:
    """A payload that is missing or above the limit is skipped; the others count."""
    registry = SigningRegistry()
    large = replace(SIGNER.attach(), payload=b"x" * ((1 << 20) + 1))
    missing = SIGNER.attach(simple_signing(reference="missing"))
    registry.attach(large, SIGNER.attach(), missing)
    del registry.blobs[str(Digest.of(missing.payload))]
    (blob,) = await fetch(registry)
    assert blob.payload == SIGNER.attach().payload


@pytest_twisted.ensureDeferred
async def test_wrong_bytes() -> None:
    """Bytes that are not those of their digest are an error of the registry."""
    registry = SigningRegistry()
    blob = SIGNER.attach()
    registry.attach(blob)
    registry.blobs[str(Digest.of(blob.payload))] = b"other"
    with pytest.raises(RegistryUnavailable, match="sent something that is not sha256:"):
        await fetch(registry)


@pytest_twisted.ensureDeferred
async def test_wrong_bytes_once() -> None:
    """Bytes that are wrong once are requested again."""
    registry = SigningRegistry()
    registry.attach(SIGNER.attach())
    registry.misbehave = lambda ask: (
        ask.answer(200, b"other") if "/blobs/" in ask.path and ask.nth == 1 else None
    )
    assert len(await fetch(registry)) == 1


@pytest_twisted.ensureDeferred
async def test_bodies_without_a_length() -> None:
    """A body that ends with its connection counts if its digest proves that it is complete."""
    registry = SigningRegistry(has_referrers=False)
    registry.attach(SIGNER.attach())
    registry.refer(compact(SIGNER.bundle()))

    def close(ask: Ask) -> object:
        digest = registry.tags.get(ask.path.rpartition("/")[2], ask.path.rpartition("/")[2])
        content = registry.blobs.get(digest) or registry.documents.get(digest, (b"",))[0]
        if not content:
            return None
        transport: Any = ask.request.transport
        transport.write(b"HTTP/1.0 200 OK\r\n\r\n" + content)
        return ask.hang_up()

    registry.misbehave = close
    assert [blob.kind for blob in await fetch(registry)] == ["cosign", "bundle"]


@pytest_twisted.ensureDeferred
async def test_very_many_signatures() -> None:
    """At most 64 signatures of an image are fetched."""
    registry = SigningRegistry(has_referrers=False)
    for number in range(80):
        registry.refer(b"bundle %d" % number)
    registry.attach(*(replace(SIGNER.attach(), payload=b"%d" % n) for n in range(60)))
    blobs = await fetch(registry)
    assert len(blobs) == 64
    assert sum(path.startswith("blobs/") for path in paths(registry)) == 64
    assert sum(path.startswith("manifests/sha256:") for path in paths(registry)) == 64


@pytest_twisted.ensureDeferred
async def test_slow_registries() -> None:
    """All signatures of an image together have a time limit."""
    registry = SigningRegistry()
    registry.attach(SIGNER.attach())
    registry.misbehave = lambda ask: True if "/blobs/" in ask.path else None
    limits = replace(SHORT, header=30.0, documents=0.5)
    with pytest.raises(RegistryUnavailable, match="for the signatures of one image"):
        await fetch(registry, limits=limits)


@pytest_twisted.ensureDeferred
async def test_an_unknown_location() -> None:
    """An image of a location that is no longer configured is an error."""
    async with serving(SigningRegistry()) as client:
        with pytest.raises(ImageNotFound, match="knows no registry"):
            await client.signatures(
                replace(resolved_image(), location="gone"), ALL_KINDS, None, quiet
            )
