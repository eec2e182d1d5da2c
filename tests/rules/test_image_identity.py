"""A policy identifies images by the location's name, whatever the URL and the mirror."""

from __future__ import annotations

import pytest

from shiftergw.model.images import Descriptor, Digest, ResolvedImage
from shiftergw.model.records import ImageRecord, Origin
from shiftergw.model.references import ImageReference
from shiftergw.rules.image_identity import identify_image, identify_record, registry_host

MANIFEST, INDEX = Digest.of(b"manifest"), Digest.of(b"index")
BLOB = Descriptor(Digest.of(b"blob"), 4)


def image_at(location: str, repository: str, kind: str = "dockerv2") -> ResolvedImage:
    """Return an image that was resolved at a location."""
    return ResolvedImage(
        MANIFEST, INDEX, BLOB, (BLOB,), location, repository, False, source_kind=kind
    )


@pytest.mark.parametrize(
    ("location", "url", "host"),
    [
        ("reg.example.org", "https://mirror.site", "reg.example.org"),
        ("Reg.example.org:5000", "https://mirror.site", "reg.example.org:5000"),
        ("reg.example.org:443", "https://reg.example.org", "reg.example.org"),
        ("index.docker.io", "https://registry-1.docker.io", "docker.io"),
        ("docker.io", "https://mirror.site/hub", "docker.io"),
        ("hub", "https://registry-1.docker.io", "docker.io"),
        ("ours", "https://user@Reg.example.org:5000/x", "reg.example.org:5000"),
        ("ours", "https://reg.example.org:443", "reg.example.org"),
        ("localhost", "http://127.0.0.1:5000", "localhost"),
        ("ours", "https://harbor", "harbor:443"),
        ("ours", "https://harbor:443", "harbor:443"),
        ("ours", "http://harbor", "harbor:80"),
        ("ours", "http://reg.example.org:80", "reg.example.org"),
        ("ours", "", "ours:443"),
    ],
)
def test_hosts_of_locations(location: str, url: str, host: str) -> None:
    """A location whose name is a host has that host; otherwise its URL decides."""
    assert registry_host(location, url) == host


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("app:1", "reg.example.org/n/app:1"),
        (f"app:1@{INDEX}", f"reg.example.org/n/app:1@{INDEX}"),
        (f"app@{INDEX}", f"reg.example.org/n/app@{INDEX}"),
    ],
)
def test_images_of_registries(text: str, name: str) -> None:
    """Tag and digest are those of the user, the repository that of the image."""
    image = image_at("reg.example.org", "n/app")
    identity = identify_image(image, ImageReference.parse(text), "https://mirror.site")
    assert (identity.transport, str(identity)) == ("docker", name)
    assert identity.digests == {str(MANIFEST), str(INDEX)}


def test_official_images() -> None:
    """Images of Docker Hub without a namespace are in `library`."""
    for repository in ("ubuntu", "library/ubuntu"):
        image = image_at("index.docker.io", repository)
        identity = identify_image(image, ImageReference.parse("ubuntu:24.04"), "")
        assert str(identity) == "docker.io/library/ubuntu:24.04"


def test_directories_of_the_site() -> None:
    """An OCI layout of the site is known by its path, with and without the tag."""
    image = image_at("local", "n/app", "oci-layout")
    identity = identify_image(image, ImageReference.parse("local/n/app:1"), "file:///srv/oci")
    assert (identity.transport, identity.reference) == ("oci", None)
    assert identity.scopes == (
        "/srv/oci/n/app:1",
        "/srv/oci/n/app",
        "/srv/oci:n/app:1",
        "/srv/oci",
        "/srv",
    )


def test_archives() -> None:
    """An uploaded archive has its transport, and neither reference nor scope."""
    image = image_at("upload", "", "docker-archive")
    identity = identify_image(image, ImageReference.parse("x:1"), "")
    assert (identity.transport, identity.scopes) == ("docker-archive", ())


@pytest.mark.parametrize("kind", ["dockerv2", "oci-layout", "docker-archive"])
@pytest.mark.parametrize("url", ["https://reg.example.org", "file:///srv/oci", ""])
def test_records(kind: str, url: str) -> None:
    """A delivered image has the identity of its pull."""
    reference = ImageReference.parse("app:1")
    origin = Origin("reg.example.org", "n/app", str(INDEX))
    record = ImageRecord(id=MANIFEST.hex, origin=origin, remotetype=kind)
    image = image_at("reg.example.org", "n/app", kind)
    assert identify_record(record, reference, url) == identify_image(image, reference, url)


@pytest.mark.parametrize(
    "record",
    [
        ImageRecord(id=MANIFEST.hex, remotetype="dockerv2"),
        ImageRecord(origin=Origin("a.b", "c", str(INDEX)), remotetype="dockerv2"),
        ImageRecord(id=MANIFEST.hex, origin=Origin("a.b", "c", str(INDEX))),
    ],
)
def test_records_that_tell_too_little(record: ImageRecord) -> None:
    """Images of records of the original gateway must be judged anew."""
    assert identify_record(record, ImageReference.parse("app:1"), "") is None
