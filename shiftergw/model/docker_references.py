"""Docker references in their expanded form, the scopes that contain them, and how they match.

Policies and signatures name images by them (containers-policy.json(5), containers-signature(5)):
`docker.io/library/busybox:latest` instead of `busybox`. The grammar is that of the OCI
distribution-spec, "Pulling manifests".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from shiftergw.model.names import DOCKER_HUB_HOSTS, DOCKER_IO

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?"
_NAME = rf"(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*"
_REFERENCE = re.compile(rf"({_NAME})(?::([A-Za-z0-9_][\w.-]{{0,127}}))?(?:@([a-z0-9]+:[0-9a-f]+))?")
_PREFIX = re.compile(rf"{_HOST}(?:/{_COMPONENT})*")

LENGTH_LIMIT = 1024
"""Characters of a reference."""


def expanded_host(host: str) -> str:
    """Return a host in lower case and without the usual port; Docker Hub becomes `docker.io`.

    A name without a domain keeps its port, which tells it from a part of a repository.
    """
    host = host.lower()
    if "." in host:
        host = host.removesuffix(":443")
    return DOCKER_IO if host in DOCKER_HUB_HOSTS else host


@dataclass(frozen=True, slots=True)
class DockerReference:
    """A repository with its host, and a tag, a digest, both, or neither."""

    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse and expand a reference; raise `ValueError` for anything else.

        A first component without dot, colon and capital letters that is not `localhost` belongs to
        a repository of Docker Hub.
        """
        match = _REFERENCE.fullmatch(text) if len(text) <= LENGTH_LIMIT else None
        if match is None or not text.isascii():
            raise ValueError("not a docker reference such as `registry.example.org/name:tag`")
        host, slash, path = match[1].partition("/")
        if not slash or not (set(".:") & set(host) or host == "localhost" or host != host.lower()):
            host, path = DOCKER_IO, match[1]
        host = expanded_host(host)
        if host == DOCKER_IO and "/" not in path:
            path = f"library/{path}"
        return cls(f"{host}/{path}", match[2] or "", match[3] or "")

    def __str__(self) -> str:
        """Return the expanded text."""
        tag = f":{self.tag}" if self.tag else ""
        return self.repository + tag + (f"@{self.digest}" if self.digest else "")

    def scopes(self) -> Iterator[str]:
        """Yield the scopes of a policy that contain this reference, the most specific first.

        These are the reference itself, its repository, the namespaces of that, the host, and
        `*.` before each parent domain of the host. A digest wins over a tag, which nobody has
        looked up then.
        """
        if self.digest:
            yield f"{self.repository}@{self.digest}"
        elif self.tag:
            yield f"{self.repository}:{self.tag}"
        scope, slash = self.repository, "/"
        while slash:
            yield scope
            parent, slash, _ = scope.rpartition("/")
            scope = parent or scope
        domain = scope if scope.startswith("[") else scope.partition(":")[0]
        while "." in domain:
            domain = domain.partition(".")[2]
            yield f"*.{domain}"


def expanded_prefix(text: str) -> str:
    """Return a host, namespace or repository with its host expanded; raise `ValueError`."""
    if len(text) > LENGTH_LIMIT or not _PREFIX.fullmatch(text):
        raise ValueError("not a host, namespace or repository such as `registry.example.org/name`")
    host, slash, path = text.partition("/")
    return f"{expanded_host(host)}{slash}{path}"


def is_same_or_repository(image: DockerReference, signature: DockerReference) -> bool:
    """Return whether `signature` names the image, by the rule `matchRepoDigestOrExact`.

    An image that is referenced by its digest matches any tag of its repository. Otherwise the tags
    are the same.
    """
    if not (signature.tag or signature.digest):
        return False
    if image.digest:
        return signature.repository == image.repository
    return signature == image


def replace_prefix(image: DockerReference, prefix: str, signed_prefix: str) -> DockerReference:
    """Return a reference with `prefix` replaced; one without the prefix stays as it is."""
    name = image.repository
    if name == prefix:
        name = signed_prefix
    elif name.startswith(f"{prefix}/"):
        name = signed_prefix + name.removeprefix(prefix)
    return DockerReference(name, image.tag, image.digest)
