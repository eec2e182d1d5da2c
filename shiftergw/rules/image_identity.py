"""How a policy sees images: the transport, the docker reference and the scopes of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from shiftergw.model.docker_references import DockerReference, expanded_host
from shiftergw.model.images import ResolvedImage
from shiftergw.model.names import DOCKER_IO
from shiftergw.model.records import ImageRecord, Origin
from shiftergw.model.references import ImageReference
from shiftergw.rules.policy import ImageIdentity

_REGISTRY_KIND = "dockerv2"
_TRANSPORTS: Mapping[str, str] = {_REGISTRY_KIND: "docker", "oci-layout": "oci"}
"""The transports of containers-transports(5) whose names differ from the kind of the source."""

_PORTS = {"https": ":443", "http": ":80"}


def registry_host(location: str, url: str) -> str:
    """Return the host that stands for a location in policies.

    It is the location's name if that is a host, because users name images by it and mirrors have
    other URLs; otherwise it is the host of its URL. The usual port is left out, except behind a
    name without a domain: without it, docker references would take that for a part of a repository.
    """
    parts = urlsplit(url)
    host = location if _is_host(location) else parts.netloc.rpartition("@")[2] or location
    port = _PORTS.get(parts.scheme, _PORTS["https"])
    plain_host = host.removesuffix(port)
    return expanded_host(plain_host if _is_host(plain_host) else plain_host + port)


def _is_host(name: str) -> bool:
    return "." in name or ":" in name or name == "localhost"


def docker_reference(host: str, repository: str, reference: ImageReference) -> DockerReference:
    """Return the expanded reference of an image at a registry."""
    if host == DOCKER_IO and "/" not in repository:
        repository = f"library/{repository}"
    digest = str(reference.digest) if reference.digest is not None else ""
    return DockerReference(f"{host}/{repository}", reference.tag, digest)


def identify_image(image: ResolvedImage, reference: ImageReference, url: str) -> ImageIdentity:
    """Return how a policy sees a resolved image; `url` is that of its location.

    A directory of the site is known by its path. An uploaded archive is known by its transport
    alone: its path is one of the user's machine, and proves nothing.
    """
    digests = frozenset({str(image.digest), str(image.source_digest)})
    origin = Origin(image.location, image.repository, str(image.source_digest))
    return _identify(image.source_kind, digests, origin, reference, url)


def identify_record(
    record: ImageRecord, reference: ImageReference, url: str
) -> ImageIdentity | None:
    """Return how a policy sees a delivered image; None if its record tells too little.

    The original gateway wrote no origin.
    """
    if record.origin is None or record.id is None or record.remotetype is None:
        return None
    digests = frozenset({f"sha256:{record.id}", record.origin.source_digest})
    return _identify(record.remotetype, digests, record.origin, reference, url)


def identify_file(record: ImageRecord) -> ImageIdentity | None:
    """Return how a policy sees a delivered image of a user's file: by its transport alone."""
    if record.id is None or record.remotetype in {None, _REGISTRY_KIND}:
        return None
    kind = str(record.remotetype)
    return ImageIdentity(_TRANSPORTS.get(kind, kind), frozenset({f"sha256:{record.id}"}))


def _identify(
    kind: str, digests: frozenset[str], origin: Origin, reference: ImageReference, url: str
) -> ImageIdentity:
    transport = _TRANSPORTS.get(kind, kind)
    if kind == _REGISTRY_KIND:
        host = registry_host(origin.location, url)
        name = docker_reference(host, origin.repository, reference)
        return ImageIdentity(transport, digests, name)
    path = unquote(urlsplit(url).path) if url.startswith("file:") else ""
    paths = _path_scopes(path, origin.repository, reference.tag) if path else ()
    return ImageIdentity(transport, digests, paths=paths)


def _path_scopes(path: str, repository: str, tag: str) -> tuple[str, ...]:
    """Return the scopes of an image in a directory of layouts, the most specific first.

    `repository` is a subdirectory, or the first part of the tag in a directory that is a layout.
    """
    directory = PurePosixPath(path)
    layout = directory / repository
    parents = [str(parent) for parent in directory.parents if str(parent) != "/"]
    suffix = f":{tag}" if tag else ""
    tags = [f"{layout}{suffix}", str(layout), f"{directory}:{repository}{suffix}", str(directory)]
    return tuple(dict.fromkeys([*tags, *parents]))
