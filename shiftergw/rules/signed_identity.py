"""Compare the name in a signature with that of an image: `signedIdentity` of policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shiftergw.model.docker_references import (
    DockerReference,
    is_same_or_repository,
    replace_prefix,
)

IdentityType = Literal[
    "matchExact",
    "matchRepoDigestOrExact",
    "matchRepository",
    "exactReference",
    "exactRepository",
    "remapIdentity",
    "matchDigest",
]


@dataclass(frozen=True, slots=True)
class SignedIdentity:
    """Which docker reference a signature must name (`signedIdentity`).

    `reference` is that of `exactReference` and `exactRepository`; `prefix` and `signed_prefix` are
    those of `remapIdentity`. `matchDigest` is an addition to containers-policy.json(5): any
    reference or none, as in bundles of sigstore. The manifest digest has to match in any case.
    """

    type: IdentityType = "matchRepoDigestOrExact"
    reference: DockerReference | None = None
    prefix: str = ""
    signed_prefix: str = ""

    def accepts(self, image: DockerReference | None, signed_text: str) -> bool:
        """Return whether a signature for `signed_text` is one for the image.

        Images of archives and directories have no reference: only the `exact…` types accept them.
        """
        if self.type == "matchDigest":
            return True
        expected = self.reference or image
        try:
            signature = DockerReference.parse(signed_text)
        except ValueError:
            expected = None
        if expected is None:
            return False
        match self.type:
            case "matchRepository" | "exactRepository":
                return signature.repository == expected.repository
            case "matchExact" | "exactReference":
                return bool(signature.tag or signature.digest) and signature == expected
            case "matchRepoDigestOrExact":
                return is_same_or_repository(expected, signature)
            case "remapIdentity":
                name = replace_prefix(expected, self.prefix, self.signed_prefix)
                return is_same_or_repository(name, signature)
