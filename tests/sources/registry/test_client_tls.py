"""The client certificate is for its registry alone, and old versions of TLS are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from OpenSSL.crypto import X509
from twisted.internet.ssl import Certificate, CertificateOptions, PrivateCertificate, TLSVersion

from shiftergw.errors import RegistryUnavailable
from shiftergw.model.images import Platform
from shiftergw.model.references import ImageReference
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.names import RegistryNames
from shiftergw.sources.registry.options import RegistryOptions
from shiftergw.sources.registry.proxy import Proxies
from tests.certificates import Authority
from tests.images import make_image, tar_of
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import (
    HASTY,
    PUBLIC,
    REACTOR,
    SHORT,
    Network,
    Sink,
    locate,
    quiet,
)

IMAGE = make_image([tar_of({"a": b"a" * 5000})])


def server_options(authority: Authority, host: str, **options: Any) -> CertificateOptions:
    """Return the TLS of a server that asks for a client certificate but does not require one."""
    own = PrivateCertificate.loadPEM(authority.file(host).read_text())
    authority_certificate = Certificate.loadPEM(authority.pem.read_bytes()).original
    return CertificateOptions(
        privateKey=own.privateKey.original,
        certificate=own.original,
        verify=True,
        requireCertificate=False,
        caCerts=[authority_certificate],
        **options,
    )


def name_of_client(ask: Ask) -> str | None:
    """Return the common name of the client certificate of a request, or None."""
    transport: Any = ask.request.transport
    certificate: X509 | None = transport.getPeerCertificate()
    if certificate is None:
        return None
    return certificate.to_cryptography().subject.rfc4514_string().removeprefix("CN=")


@pytest_twisted.ensureDeferred
async def test_a_redirect_gets_no_client_certificate(tmp_path: Path) -> None:
    """The registry sees the gateway's certificate; a host that it redirects to does not."""
    authority = Authority(tmp_path)
    clients: list[tuple[str, str | None]] = []

    def at_registry(ask: Ask) -> object:
        clients.append(("registry", name_of_client(ask)))
        if "/blobs/" not in ask.path:
            return None
        return ask.answer(307, Location=f"https://store.example:{port}{ask.path}")

    def at_store(ask: Ask) -> None:
        clients.append(("store", name_of_client(ask)))

    registry = FakeRegistry(IMAGE, misbehave=at_registry)
    store = FakeRegistry(IMAGE, misbehave=at_store)
    await registry.start(server_options(authority, "registry.example"))
    await store.start(server_options(authority, "store.example"))
    port = store.host.rpartition(":")[2]
    own = authority.file("gateway")
    own.chmod(0o600)
    url = f"https://registry.example:{registry.host.rpartition(':')[2]}"
    location = Location("test", url, authority.pem, client_certificate=own)
    network: Any = Network({"registry.example": [PUBLIC], "store.example": [PUBLIC]})
    names = RegistryNames({"test": location}, locate)
    client = RegistryClient(network, names, Proxies({}), RegistryOptions(SHORT))
    try:
        reference = ImageReference.parse("team/app")
        image, _ = await client.resolve(reference, Platform(), None, quiet)
        await client.blob(image, image.layers[0], None, quiet, 0, Sink())
    finally:
        await client.close()
        await pause(0.02, REACTOR)
        await registry.stop()
        await store.stop()
    assert {name for place, name in clients if place == "registry"} == {"gateway"}
    assert [name for place, name in clients if place == "store"] == [None, None]


@pytest.mark.parametrize(("least", "is_accepted"), [("1.2", True), ("1.3", False)])
@pytest_twisted.ensureDeferred
async def test_the_least_version_of_tls(tmp_path: Path, least: Any, *, is_accepted: bool) -> None:
    """A registry that speaks TLS 1.2 at most is refused if the location wants 1.3."""
    authority = Authority(tmp_path)
    registry = FakeRegistry(IMAGE)
    await registry.start(
        server_options(authority, "127.0.0.1", lowerMaximumSecurityTo=TLSVersion.TLSv1_2)
    )
    location = Location("test", f"https://{registry.host}", authority.pem, least_tls=least)
    names = RegistryNames({"test": location}, locate)
    client = RegistryClient(REACTOR, names, Proxies({}), RegistryOptions(SHORT, HASTY))
    try:
        if is_accepted:
            assert await client.head(ImageReference.parse("x"), None, quiet) == IMAGE.digest
        else:
            with pytest.raises(RegistryUnavailable, match="does not speak TLS"):
                await client.head(ImageReference.parse("x"), None, quiet)
    finally:
        await client.close()
        await pause(0.02, REACTOR)
        await registry.stop()
