"""References of images: `[location/]repository[:tag][@digest]`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self

from shiftergw.errors import BadRequest, printable
from shiftergw.model.images import Digest
from shiftergw.model.names import check_registry_name, is_host, registry_name

REFERENCE_LIMIT = 512
"""Characters of a reference: 255 of the repository, 128 of the tag, digest and punctuation."""

# OCI distribution-spec, "Pulling manifests": <name> and <reference>, after an optional host[:port].
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?"
_NAME = rf"(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_REFERENCE = re.compile(rf"({_NAME})(?::({_TAG}))?(?:@([a-z0-9]+:[0-9a-f]+))?")


@dataclass(frozen=True, slots=True)
class ImageReference:
    """A reference to an image: `[location/]repository[:tag][@digest]`.

    `name` includes the location's name if the user wrote one, in lower case.
    """

    name: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse and normalize a reference; raise `BadRequest` with the grammar if it is invalid.

        Without tag and digest the tag is `latest`. A port of a registry is not a tag. A prefix that
        stands for a registry, such as `docker://`, is removed. Host names have no case (RFC 4343).
        """
        reference = cls._parse(text)
        host, slash, rest = reference.name.partition("/")
        if slash and is_host(host.lower()):
            reference = replace(reference, name=f"{host.lower()}/{rest}")
        return reference

    @classmethod
    def _parse(cls, text: str) -> Self:
        """Parse a reference, and keep the case of its host."""
        text = registry_name(text)
        check_registry_name(text)
        match = _REFERENCE.fullmatch(text) if len(text) <= REFERENCE_LIMIT else None
        if match is None:
            raise BadRequest(
                f"{printable(text, 120)!r} is not an image reference.",
                remedy="Write `[location/]repository[:tag][@sha256:…]`, the repository in"
                " lower case, for example `ubuntu:24.04`.",
            )
        digest = Digest.parse(match[3]) if match[3] else None
        return cls(match[1], match[2] or ("" if digest else "latest"), digest)

    @classmethod
    def stored_tags(cls, text: str) -> list[str]:
        """Return the tags under which the store may have an image: the normalized one first.

        The original gateway stored names as they were written, and added `:latest`. Raises
        `BadRequest` as `parse`.
        """
        return list(dict.fromkeys([str(cls.parse(text)), text, str(cls._parse(text))]))

    def check_uploaded_name(self) -> None:
        """Raise `BadRequest` unless an image that is made of an upload can have this name."""
        if "/" in self.name or self.digest is not None:
            raise BadRequest(
                "The name of an image that is made of an upload has no / and no digest.",
                remedy="Write NAME or NAME:TAG, for example analysis:1.2.",
            )

    def __str__(self) -> str:
        """Return the normalized text, which records store as their tag."""
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")
