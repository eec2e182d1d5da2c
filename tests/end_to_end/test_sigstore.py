"""Policies with signatures of sigstore: attached to images of a real registry, pulled by a gateway.

Debian's registry has no referrers API, so bundles are under the fallback tag.
"""

from __future__ import annotations

import base64
import hashlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shiftergw.model.signatures import SignatureBlob
from tests.images import INDEX, MANIFEST, descriptor, entry, oci_layout, tar_of
from tests.parts import need
from tests.patience import patient
from tests.registries import DockerRegistry
from tests.running_service import POLL_PAUSE, SYSTEM, Service, until
from tests.signatures.signers import (
    EMAIL,
    ISSUER,
    CertificateIssuer,
    CosignSigner,
    compact,
    pem,
    public_der,
    public_pem,
    simple_signing,
    statement,
)

ATTACHMENT = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


class Uploader:
    """Pushes signatures to a registry, beside images that skopeo has pushed."""

    def __init__(self, registry: DockerRegistry) -> None:
        """Push to this registry."""
        self._registry = registry

    def _send(self, method: str, path: str, content: bytes, media_type: str) -> Any:
        url = path if path.startswith("http") else f"http://{self._registry.host}/v2/{path}"
        headers = {"Content-Type": media_type}
        return urllib.request.urlopen(
            urllib.request.Request(url, content, headers, method=method), timeout=patient(60)
        )

    def push_blob(self, repository: str, content: bytes) -> None:
        """Push a blob (distribution-spec, "Pushing a blob monolithically")."""
        with self._send("POST", f"{repository}/blobs/uploads/", b"", "") as response:
            location = response.headers["Location"]
        digest = hashlib.sha256(content).hexdigest()
        mark = "&" if "?" in location else "?"
        url = f"{location}{mark}digest=sha256:{digest}"
        self._send("PUT", url, content, "application/octet-stream").close()

    def push_document(self, repository: str, tag: str, document: dict[str, Any]) -> bytes:
        """Push a manifest or index; return its bytes."""
        content = compact(document)
        self._send("PUT", f"{repository}/manifests/{tag}", content, document["mediaType"]).close()
        return content

    def push_layers(self, repository: str, tag: str, *layers: tuple[bytes, str, Any]) -> bytes:
        """Push a manifest with these layers (content, media type, annotations)."""
        for content in (b"{}", *(layer[0] for layer in layers)):
            self.push_blob(repository, content)
        config = descriptor(b"{}", "application/vnd.oci.image.config.v1+json")
        descriptors = [
            descriptor(content, media_type, annotations=annotations)
            for content, media_type, annotations in layers
        ]
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config}
        return self.push_document(repository, tag, {**document, "layers": descriptors})

    def attach(self, repository: str, digest: str, blob: SignatureBlob) -> None:
        """Attach a signature to an image as cosign 2 does."""
        annotations = dict(blob.annotations)
        if blob.certificate:
            annotations["dev.sigstore.cosign/certificate"] = blob.certificate.decode()
            annotations["dev.sigstore.cosign/chain"] = blob.chain.decode()
        layer = (blob.payload, ATTACHMENT, annotations)
        self.push_layers(repository, f"{digest.replace(':', '-')}.sig", layer)

    def refer(self, repository: str, digest: str, bundle: dict[str, Any]) -> None:
        """Attach a bundle to an image as cosign 3 does at registries without referrers."""
        content = self.push_layers(repository, "bundle", (compact(bundle), BUNDLE, {}))
        index = {"schemaVersion": 2, "mediaType": INDEX}
        manifests = [descriptor(content, MANIFEST, artifactType=BUNDLE)]
        tag = digest.replace(":", "-")
        self.push_document(repository, tag, {**index, "manifests": manifests})


class SignedImages:
    """A registry with images that are signed in all ways, and the policy of a system."""

    def __init__(self, root: Path, registry: DockerRegistry) -> None:
        """Push an image for each way to sign."""
        self.host = registry.host
        self.policy = root / "policy.json"
        self.signer, authority = CosignSigner(), CertificateIssuer()
        log = self.signer.log
        keyless = CosignSigner(log=log)
        keyless.certificate = authority.certify(keyless.key)
        keyless.chain = authority.chain
        self.authority = pem(authority.root)
        digests = {}
        for name in ("attached", "bundled", "keyless", "foreign", "moved", "unsigned"):
            digests[name] = str(oci_layout(root / name, [tar_of([entry("name", name.encode())])]))
            registry.push(root / name, f"lib/{name}:1")
        uploader = Uploader(registry)
        for name, signer, signed_name in (
            ("attached", self.signer, "attached"),
            ("keyless", keyless, "keyless"),
            ("foreign", CosignSigner(log=log), "foreign"),
            ("moved", self.signer, "origin"),
        ):
            payload = simple_signing(digests[name], f"{self.host}/lib/{signed_name}")
            uploader.attach(f"lib/{name}", digests[name], signer.attach(payload))
        bundle = self.signer.bundle(statement(digests["bundled"]))
        uploader.refer("lib/bundled", digests["bundled"], bundle)

    def require(self, root: Path, identity: str) -> None:
        """Write the policy: a key, and for one image an authority; all signatures are logged."""
        log_key = base64.b64encode(self.signer.log.pem).decode()
        common = {
            "type": "sigstoreSigned",
            "rekorPublicKeyData": log_key,
            "signedIdentity": {"type": identity},
        }
        key = root / "cosign.pub"
        key.write_bytes(public_pem(self.signer.key))
        fulcio = {
            "caData": base64.b64encode(self.authority).decode(),
            "oidcIssuer": ISSUER,
            "subjectEmail": EMAIL,
        }
        scopes = {
            self.host: [{**common, "keyPath": str(key)}],
            f"{self.host}/lib/keyless": [{**common, "fulcio": fulcio}],
        }
        document = {"default": [{"type": "reject"}], "transports": {"docker": scopes}}
        self.policy.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignedImages]:
    """Return the images and the policy."""
    root = tmp_path_factory.mktemp("sigstore")
    with DockerRegistry(root / "data") as registry:
        images = SignedImages(root, registry)
        images.require(root, "matchRepository")
        yield images


@pytest.fixture(scope="module")
def service(images: SignedImages) -> Iterator[Service]:
    """Run a gateway whose only system has the policy."""
    need("mksquashfs")
    locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{images.host}"}}
    service = Service(images.policy.parent / "service", locations)
    document = json.loads(service.config.read_text())
    document["Platforms"][SYSTEM]["policy_file"] = str(images.policy)
    service.config.write_text(json.dumps(document))
    with service:
        yield service


def test_signatures_of_sigstore(images: SignedImages, service: Service) -> None:
    """Images are pulled by the signatures that the policy wants; refusals name the reason."""
    image = service.pull("lib/attached:1")
    assert image["status"] == "READY", image
    digest = hashlib.sha256(public_der(images.signer.key)).hexdigest()
    assert image["policy"]["identity"] == f"sha256:{digest}"
    image = service.pull("lib/keyless:1")
    assert image["status"] == "READY", image
    assert image["policy"]["identity"] == f"{EMAIL} ({ISSUER})"
    for name, words in (
        ("unsigned", "no sigstore signature"),
        ("foreign", "its log entry is of a key that the policy does not name"),
        ("moved", "it is one for"),
        ("bundled", "it names no repository, which matchRepository requires"),
    ):
        failure = service.pull(f"lib/{name}:1")
        assert failure["status"] == "FAILURE", failure
        assert words in failure["cause"]

    images.require(images.policy.parent, "matchDigest")
    # The failure is held for two seconds (`FailureHold`).
    until(
        lambda: service.pull("lib/bundled:1")["status"] == "READY",
        30,
        "the accepted pull",
        POLL_PAUSE,
    )
    assert service.pull("lib/attached:1")["status"] == "READY"
    assert service.pull("lib/foreign:1")["status"] == "FAILURE"
