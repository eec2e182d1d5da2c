"""Ports of the check of signatures: where signatures come from, and who verifies them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shiftergw.model.docker_references import DockerReference
    from shiftergw.model.images import ResolvedImage
    from shiftergw.model.requests import RegistryLogin
    from shiftergw.model.signatures import (
        SignatureBlob,
        SignatureKind,
        TrustedKeys,
        VerificationResult,
    )
    from shiftergw.ports.images import Notify


class SignatureSource(Protocol):
    """Fetches the signatures of an image, as an `ImageSource` fetches its blobs."""

    async def signatures(
        self,
        image: ResolvedImage,
        reference: DockerReference,
        kinds: frozenset[SignatureKind],
        login: RegistryLogin | None,
        notify: Notify,
    ) -> Sequence[SignatureBlob]:
        """Return the signatures of these kinds for `image.digest` and `image.source_digest`.

        `reference` is the image as its policy sees it: it selects the section of registries.d. An
        image without signatures has an empty list. At most `SIGNATURES_LIMIT` signatures are
        read, of at most `SIGNATURE_SIZE_LIMIT` bytes each; what exceeds a limit is left out. Raises
        the errors of an `ImageSource` if the source cannot tell which signatures exist: an
        incomplete list would look like a missing signature.
        """
        ...


class SignatureVerifier(Protocol):
    """Verifies the cryptography of signatures of the kinds that it knows."""

    async def verify(self, signature: SignatureBlob, keys: TrustedKeys) -> VerificationResult:
        """Return what the signature claims, or why it does not hold for these keys.

        The content of a signature is hostile: whatever is wrong with it is a `RejectedSignature`.
        Raises `ConfigurationError` if the keys are unusable, and another `GatewayError` if the
        verification itself is impossible at the moment; the image is then not accepted.
        """
        ...
